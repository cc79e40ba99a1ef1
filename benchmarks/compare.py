"""Prints the differences between the last two runs of the benchmarks.

Usage: python benchmarks/compare.py FOLDER, where FOLDER has the files written by `make bench`.
"""

import json
import sys
from pathlib import Path

NOISE = 0.1
"Relative difference of medians below which they count as equal."


def read(path):
    content = json.loads(path.read_text())
    machine = content["machine_info"]
    medians = {b["fullname"].split("::")[-1]: b["stats"]["median"] for b in content["benchmarks"]}
    return medians, (machine["cpu"].get("brand_raw"), machine["cpu"]["count"])


def main(folder):
    files = sorted(Path(folder).glob("*.json"))
    if len(files) < 2:
        sys.exit(f"{folder} has {len(files)} runs and two are needed; run `make bench`")
    (before, old_machine), (after, machine) = read(files[-2]), read(files[-1])
    print(f"{files[-2].stem} → {files[-1].stem}")
    if machine != old_machine:
        print(f"the machines differ: {old_machine} → {machine}")
    same = 0
    for name in sorted(before | after):
        if name not in after or name not in before:
            print(f"{name:60} {'removed' if name in before else 'new'}")
            continue
        change = after[name] / before[name]
        if abs(change - 1) < NOISE:
            same += 1
            continue
        how = f"{change:.2f}x slower" if change > 1 else f"{1 / change:.2f}x faster"
        print(f"{name:60} {before[name]:9.4g} s → {after[name]:9.4g} s  {how}")
    print(f"{same} others differ by less than {NOISE:.0%}")


if __name__ == "__main__":
    main(sys.argv[1])
