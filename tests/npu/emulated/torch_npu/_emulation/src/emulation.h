// An emulation of Ascend NPUs for tests: the parts of a torch backend named `npu` whose memory is the host's and whose
// kernels are the CPU's. It is not an NPU: its numbers and its speed say nothing about a real one.
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>
#include <functional>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace npu_emulation {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
constexpr auto NPU = c10::DeviceType::PrivateUse1;
constexpr int kMostDevices = 64;

// Settings from environment variables (faults.cpp); each makes the device worse than its CPU. DEVICE is the machine's number, as in
// ASCEND_RT_VISIBLE_DEVICES; the fields hold torch's numbers.
struct Faults {
  int hbm_device = -1;  // NPU_EMULATED_HBM_MIB=MIB or DEVICE:MIB: the memory of all devices or of one
  int64_t hbm_bytes = 0;
  bool saturates = false;  // NPU_EMULATED_INF_NAN=0: fp16 stops at 65,504 and raises a flag, like on an Ascend 910A
  int silent_device = -1;  // NPU_EMULATED_INF_NAN=silent:DEVICE: it stops there, and nothing tells of it
  bool counts_work = false;  // NPU_EMULATED_CLOCK=work: events count this process's time on processors, not the wall's
  bool reversed = false;   // NPU_EMULATED_REDUCTIONS=reversed: sums are added up from the other end
  int alternating_device = -1;  // NPU_EMULATED_REDUCTIONS=alternating:DEVICE: from either end, as if drawn
  int fail_rank = -1, fail_at = 0;  // NPU_EMULATED_FAIL=RANK:N: this rank's N-th collective ends in an HCCL error
  int hang_rank = -1, hang_at = 0;  // NPU_EMULATED_HANG=RANK:N: this rank hangs before its N-th collective
  int lost_part_device = -1, lost_part_at = 0;  // NPU_EMULATED_LOST_PART=DEVICE:N: its N-th collective sums without its part
  int slow_device = -1, slow_factor = 1;        // NPU_EMULATED_SLOW=DEVICE:FACTOR: kernels take FACTOR times as long
  int hot_device = -1, hot_factor = 1;  // NPU_EMULATED_THROTTLE=DEVICE:SECONDS:FACTOR: a kernel takes FACTOR times as long
  double hot_after = 0;                 // when it has been the only one for SECONDS; any other kernel is a pause, which cools
  int forgetful_device = -1, forgets_every = 1;  // NPU_EMULATED_FORGETS=DEVICE:N: N allocations later, a bit of a block flips
  int open_device = -1;  // NPU_EMULATED_OPEN=DEVICE:hang or DEVICE:fail: the device does not open
  bool open_hangs = false;
  int wrong_bit_device = -1, wrong_every = 1;  // NPU_EMULATED_WRONG_BIT=DEVICE:KERNEL:N: one in each N-th result of a kernel
  std::string wrong_kernel;
  int stale_replay_device = -1, stale_replay_every = 1;  // NPU_EMULATED_STALE_REPLAY=DEVICE:N: each N-th replay of a graph computes nothing
  int short_sum_device = -1;  // NPU_EMULATED_SHORT_SUM=DEVICE: sums in fp16 leave out the last number
};
const Faults& faults();
bool saturates(DeviceIndex index);
bool reversed(DeviceIndex index);            // asked once for each sum
int64_t memory_limit(DeviceIndex index);     // bytes; 0: none
void spoil(const std::string& kernel, const Tensor& result, DeviceIndex index);  // `result` is the CPU's alias
bool is_stale_replay(DeviceIndex index);  // asked once for each replay
struct Slowed {  // the work of a device as long as this lives
  explicit Slowed(DeviceIndex index, const std::string& kernel = "");
  ~Slowed();
  Slowed(const Slowed&) = delete;
  Slowed& operator=(const Slowed&) = delete;

 private:
  bool hot_;
  int factor_;
  double start_, work_start_;
};
void remember_block(void* data, int64_t bytes, DeviceIndex index);
void forget_block(void* data);

// Devices
DeviceIndex device_count();
DeviceIndex current_device();
void set_device(DeviceIndex index);
Device resolve(std::optional<Device> device);
void note(const std::string& line);  // one line in the file NPU_EMULATED_LOG, if it is set

// CANN's own log, its plog (plog.cpp)
void log_run(const std::string& text);
void log_error(const std::string& text);

struct OnDevice {  // `index` is the current device as long as this lives
  explicit OnDevice(DeviceIndex index);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  DeviceIndex before;
};

// Memory
c10::Allocator* allocator();
c10::DataPtr device_pointer(c10::Storage host, DeviceIndex index);  // owns `host` and shows its bytes
int64_t memory_allocated(DeviceIndex index);
int64_t peak_memory(DeviceIndex index);
void reset_peak_memory(DeviceIndex index);

// Random numbers: a CPU generator for each device, so that a seed draws the same as on a CPU
const at::Generator& default_generator(DeviceIndex index);
void seed_closed(DeviceIndex index, uint64_t seed);  // without opening the device
at::Generator host_generator(const at::Generator& generator);

// Zero-copy aliases of device tensors as CPU tensors, for the time of one call
inline bool is_npu(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == NPU; }

Tensor same_memory(const Tensor& tensor);  // a device tensor of its own on the same memory

class Aliases {
 public:
  Tensor to_cpu(const Tensor& tensor);
  Tensor to_npu(const Tensor& tensor, Device device);
  c10::Storage to_cpu(const c10::Storage& storage);
  void write_back();  // tensors that the call has resized or given another storage

 private:
  c10::Storage npu_storage(const c10::Storage& host, Device device);
  std::vector<std::pair<c10::Storage, c10::Storage>> storages_;  // of the device, of the CPU
  std::vector<std::pair<Tensor, Tensor>> tensors_;
};

// Captured graphs (graphs.cpp)
class Graph {
 public:
  void begin();
  void end();
  void replay();
  void keep(const Tensor& tensor);  // remember its memory as it is before a call that is recorded
  void add(std::vector<Tensor> results, std::function<std::vector<Tensor>()> call);

 private:
  std::vector<std::function<void()>> calls_;
  std::unordered_set<c10::StorageImpl*> made_;  // by the recording, or remembered; `calls_` and `before_` own them
  std::vector<std::pair<c10::Storage, std::vector<char>>> before_;
  DeviceIndex device_ = 0;
  Tensor generator_state_;
};
Graph* recording();  // the graph that is being captured, or null
void refuse_in_capture(const std::string& call);
void compute_in_replays(bool wanted);  // false: a replay does nothing, like the host's part of a real one

// The behaviour of fp16 beyond 65,504 if the device saturates; `tensor` is the CPU's alias of a result.
void saturate(const Tensor& tensor, DeviceIndex index);
void allow_conv_hf32(bool allowed);  // convolutions round operands in fp32 to 12 bits; they do at first
bool overflow_flag(DeviceIndex index);
void clear_overflow_flag(DeviceIndex index);

}  // namespace npu_emulation
