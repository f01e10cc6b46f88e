// HCCL's process group, over gloo.
#pragma once
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace npu_emulation {
c10::intrusive_ptr<c10d::Backend> hccl_over(c10::intrusive_ptr<c10d::Backend> gloo, double us_per_mib);
}
