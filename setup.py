"""Maps the folders to import names and builds the compiled kernels.

Metadata is in pyproject.toml. The kernels are optional: without a C++ compiler the package is
pure Python; with nvcc the CUDA sources are compiled in as well.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

PACKAGES = {"core": "retinakit", "plugins": "retinakit_plugins"}

CUDA_ARCHITECTURES = (
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
)


class BuildKernels(build_ext):
    """Compiles `.cu` sources with nvcc where it is found, and goes on where nothing compiles."""

    def build_extension(self, ext):
        nvcc = None if os.environ.get("RETINAKIT_NO_CUDA") else shutil.which("nvcc")
        try:
            if nvcc:
                ext.extra_objects += self.compile_cuda(nvcc)
                ext.define_macros.append(("RETINAKIT_CUDA", None))
                ext.libraries += ["cudart_static", "rt", "pthread", "dl"]
                ext.library_dirs += self.cuda_library_folders(nvcc)
            super().build_extension(ext)
        except Exception as error:
            print(
                f"retinakit: the compiled kernels could not be built ({error}); "
                "the package works without them, slower. See `retina-run doctor`.",
                file=sys.stderr,
            )

    @staticmethod
    def cuda_library_folders(nvcc):
        """The folders that nvcc itself would link from."""
        dry = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-", "-o", "unused"],
            input="",
            capture_output=True,
            text=True,
        )
        return [
            folder
            for folder in re.findall(r'-L"?([^"\s]+)"?', dry.stderr)
            if Path(folder, "libcudart_static.a").exists()
        ]

    def compile_cuda(self, nvcc):
        objects = []
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        for source in sorted(Path("csrc").glob("*.cu")):
            target = Path(self.build_temp) / f"{source.stem}.cu.o"
            command = [nvcc, "-O3", "-std=c++17", "-Xcompiler", "-fPIC", *CUDA_ARCHITECTURES]
            subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
            objects.append(str(target))
        return objects


setup(
    package_dir={package: folder for folder, package in PACKAGES.items()},
    packages=[
        name
        for folder, package in PACKAGES.items()
        for name in (package, *(f"{package}.{inner}" for inner in find_packages(folder)))
    ],
    package_data={"retinakit": ["py.typed", "**/*.pyi", "report/page.html.j2"]},
    ext_modules=[
        Pybind11Extension(
            "retinakit._kernels",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            cxx_std=17,
            extra_compile_args=["-O3"],
            libraries=["dl"] if sys.platform == "linux" else [],  # csrc/parallel.h
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
