// The readout on a GPU, run by the CPU, as functions for ctypes.
#include "../../csrc/readout.cu"

using namespace retinakit::device;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Launch launch(bool bfloat16) { return {0, 0, bfloat16}; }

Shape shape_of(const int* s) { return {s[0], s[1], s[2], s[3]}; }

Masks masks_of(const uintptr_t* a) {
  return {at<const int64_t>(a[0]), at<const float>(a[1]),   at<const int32_t>(a[2]),
          at<const int64_t>(a[3]), at<const int32_t>(a[4]), at<const float>(a[5]),
          at<const int64_t>(a[6])};
}

MasksByPosition by_position_of(const uintptr_t* a) {
  return {at<const int64_t>(a[0]), at<const int32_t>(a[1]), at<const float>(a[2]),
          at<const float>(a[3])};
}

}  // namespace

extern "C" {

void readout_on_gpu(bool bfloat16, const int* shape, uintptr_t features, const uintptr_t* masks,
                    uintptr_t out) {
  launch_read(launch(bfloat16), at<void>(features), shape_of(shape), masks_of(masks),
              at<float>(out));
}

void readout_weight_gradient_on_gpu(bool bfloat16, const int* shape, uintptr_t features,
                                    const uintptr_t* masks, uintptr_t gradient, uintptr_t out) {
  launch_weight_gradient(launch(bfloat16), at<void>(features), shape_of(shape), masks_of(masks),
                         at<const float>(gradient), at<float>(out));
}

void readout_mask_gradient_on_gpu(bool bfloat16, const int* shape, uintptr_t features,
                                  const uintptr_t* masks, uintptr_t gradient, uintptr_t out) {
  launch_mask_gradient(launch(bfloat16), at<void>(features), shape_of(shape),
                       by_position_of(masks), at<const float>(gradient), at<float>(out));
}

void readout_feature_gradient_on_gpu(bool bfloat16, const int* shape, const uintptr_t* masks,
                                     uintptr_t gradient, uintptr_t out) {
  launch_feature_gradient(launch(bfloat16), shape_of(shape), by_position_of(masks),
                          at<const float>(gradient), at<void>(out));
}
}
