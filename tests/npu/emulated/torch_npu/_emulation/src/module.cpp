// The Python interface of the emulation.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "emulation.h"
#include "hccl.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace npu_emulation;
  m.def("device_count", [] { return static_cast<int>(device_count()); });
  m.def("current_device", [] { return static_cast<int>(current_device()); });
  m.def("set_device", [](int index) { set_device(static_cast<DeviceIndex>(index)); });
  m.def("default_generator", [](int index) { return default_generator(static_cast<DeviceIndex>(index)); });
  m.def("seed_closed", [](int index, uint64_t seed) { seed_closed(static_cast<DeviceIndex>(index), seed); });
  m.def("memory_allocated", [](int index) { return memory_allocated(static_cast<DeviceIndex>(index)); });
  m.def("memory_limit", [](int index) { return memory_limit(static_cast<DeviceIndex>(index)); });
  m.def("peak_memory", [](int index) { return peak_memory(static_cast<DeviceIndex>(index)); });
  m.def("reset_peak_memory", [](int index) { reset_peak_memory(static_cast<DeviceIndex>(index)); });
  m.def("allow_conv_hf32", &allow_conv_hf32);
  m.def("saturates", [] { return faults().saturates; });
  m.def("overflow_flag", [](int index) { return overflow_flag(static_cast<DeviceIndex>(index)); });
  m.def("clear_overflow_flag", [](int index) { clear_overflow_flag(static_cast<DeviceIndex>(index)); });
  pybind11::class_<Graph, std::shared_ptr<Graph>>(m, "Graph")
      .def(pybind11::init<>())
      .def("begin", &Graph::begin)
      .def("end", &Graph::end)
      .def("replay", &Graph::replay, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("is_capturing", [] { return recording() != nullptr; });
  m.def("refuse_in_capture", &refuse_in_capture);
  m.def("compute_in_replays", &compute_in_replays);
  m.def("note", &note);
  m.def("hccl_over", &hccl_over, pybind11::call_guard<pybind11::gil_scoped_release>());
}
