// Conditions that a test plants in one device, so that a check of devices has something to find.
#include "emulation.h"

#include <c10/util/Exception.h>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <mutex>
#include <sstream>

namespace npu_emulation {
namespace {

constexpr int64_t kLargeBlock = 1 << 20;

// DEVICE or RANK, and the parts after it.
struct Planted {
  int first = -1;
  int device = -1;  // torch's number of DEVICE in this process
  std::vector<std::string> parts;
};

// Torch's number in this process of one of the machine's devices; -1 if this process does not see it.
int torch_number(int device) {
  const char* visible = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (!visible || device < 0) return device;
  std::stringstream stream(visible);
  std::string part;
  for (int number = 0; std::getline(stream, part, ','); ++number)
    if (std::stoi(part) == device) return number;
  return -1;
}

Planted planted(const char* variable, size_t parts) {
  Planted fault;
  const char* text = std::getenv(variable);
  if (!text) return fault;
  std::stringstream stream(text);
  std::string part;
  while (std::getline(stream, part, ':')) fault.parts.push_back(part);
  TORCH_CHECK(fault.parts.size() == parts + 1, variable, "=", text, " does not have the form DEVICE with ", parts, " parts after it");
  fault.first = std::stoi(fault.parts[0]);
  fault.device = torch_number(fault.first);
  fault.parts.erase(fault.parts.begin());
  return fault;
}

Faults read_faults() {
  Faults read;
  auto text = [](const char* variable) { return std::string(std::getenv(variable) ? std::getenv(variable) : ""); };
  if (const auto hbm = text("NPU_EMULATED_HBM_MIB"); hbm.find(':') != std::string::npos) {
    const Planted little = planted("NPU_EMULATED_HBM_MIB", 1);
    read.hbm_device = little.device;
    read.hbm_bytes = little.device < 0 ? 0 : std::stoll(little.parts[0]) << 20;
  } else if (!hbm.empty()) {
    read.hbm_bytes = std::stoll(hbm) << 20;
  }
  const auto inf_nan = text("NPU_EMULATED_INF_NAN");
  read.saturates = inf_nan == "0";
  if (inf_nan.rfind("silent:", 0) == 0) read.silent_device = torch_number(std::stoi(inf_nan.substr(7)));
  const auto reductions = text("NPU_EMULATED_REDUCTIONS");
  read.reversed = reductions == "reversed";
  if (reductions.rfind("alternating:", 0) == 0) read.alternating_device = torch_number(std::stoi(reductions.substr(12)));
  read.counts_work = text("NPU_EMULATED_CLOCK") == "work";
  auto number = [](const char* variable, int Planted::*which, int& place, int& value) {
    const Planted fault = planted(variable, 1);
    place = fault.*which;
    if (place >= 0) value = std::stoi(fault.parts[0]);
  };
  number("NPU_EMULATED_FAIL", &Planted::first, read.fail_rank, read.fail_at);
  number("NPU_EMULATED_HANG", &Planted::first, read.hang_rank, read.hang_at);
  number("NPU_EMULATED_LOST_PART", &Planted::device, read.lost_part_device, read.lost_part_at);
  number("NPU_EMULATED_SLOW", &Planted::device, read.slow_device, read.slow_factor);
  number("NPU_EMULATED_FORGETS", &Planted::device, read.forgetful_device, read.forgets_every);
  number("NPU_EMULATED_STALE_REPLAY", &Planted::device, read.stale_replay_device, read.stale_replay_every);
  const Planted open = planted("NPU_EMULATED_OPEN", 1), bit = planted("NPU_EMULATED_WRONG_BIT", 2);
  read.open_device = open.device;
  if (open.device >= 0) read.open_hangs = open.parts[0] == "hang";
  read.wrong_bit_device = bit.device;
  if (bit.device >= 0) {
    read.wrong_kernel = bit.parts[0];
    read.wrong_every = std::stoi(bit.parts[1]);
  }
  read.short_sum_device = planted("NPU_EMULATED_SHORT_SUM", 0).device;
  const Planted hot = planted("NPU_EMULATED_THROTTLE", 2);
  read.hot_device = hot.device;
  if (hot.device >= 0) {
    read.hot_after = std::stod(hot.parts[0]);
    read.hot_factor = std::stoi(hot.parts[1]);
  }
  return read;
}

double cpu_seconds(clockid_t clock = CLOCK_THREAD_CPUTIME_ID) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The kernel that the hot device has computed last, and for how many seconds without another one; a thread's own.
thread_local std::string hot_kernel;
thread_local double hot_seconds = 0;

int factor_of_heat(const std::string& kernel) {
  if (kernel != hot_kernel) hot_seconds = 0;
  hot_kernel = kernel;
  return hot_seconds > faults().hot_after ? faults().hot_factor : 1;
}

std::mutex blocks_mutex;
std::map<char*, int64_t> blocks;  // large ones of the forgetful device
int64_t allocations = 0;

}  // namespace

const Faults& faults() {
  static const Faults asked = read_faults();
  return asked;
}

bool saturates(DeviceIndex index) { return faults().saturates || index == faults().silent_device; }

bool reversed(DeviceIndex index) {
  if (index != faults().alternating_device) return faults().reversed;
  static std::atomic<int64_t> calls{0};
  return ++calls * 2654435761 >> 13 & 1;  // no pattern that a training pass could repeat
}

int64_t memory_limit(DeviceIndex index) {
  const int device = faults().hbm_device;
  return device < 0 || device == index ? faults().hbm_bytes : 0;
}

void spoil(const std::string& kernel, const Tensor& result, DeviceIndex index) {
  if (index != faults().wrong_bit_device || kernel != faults().wrong_kernel || !result.defined() || !result.numel()) return;
  static std::atomic<int64_t> calls{0};
  const int64_t number = ++calls;
  if (number % faults().wrong_every) return;
  const int64_t drawn = number * 2654435761;
  auto* bytes = static_cast<unsigned char*>(result.data_ptr());
  const int64_t at = drawn / 64 % (result.numel() * static_cast<int64_t>(result.element_size()));
  bytes[at] ^= static_cast<unsigned char>(1 << (drawn / 8 % 8));
}

bool is_stale_replay(DeviceIndex index) {
  if (index != faults().stale_replay_device) return false;
  static std::atomic<int64_t> replays{0};
  return ++replays % faults().stale_replay_every == 0;
}

Slowed::Slowed(DeviceIndex index, const std::string& kernel)
    : hot_(index == faults().hot_device),
      factor_(index == faults().slow_device ? faults().slow_factor : hot_ ? factor_of_heat(kernel) : 1),
      start_(hot_ || factor_ > 1 ? cpu_seconds() : 0),
      work_start_(hot_ ? cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) : 0) {}
Slowed::~Slowed() {
  if (hot_) hot_seconds += cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - work_start_;
  if (factor_ == 1) return;
  const double end = start_ + (cpu_seconds() - start_) * factor_;
  while (cpu_seconds() < end) {
  }
}

void remember_block(void* data, int64_t bytes, DeviceIndex index) {
  if (index != faults().forgetful_device) return;
  std::lock_guard<std::mutex> lock(blocks_mutex);
  if (++allocations % faults().forgets_every == 0 && !blocks.empty()) {
    auto& [start, size] = *blocks.begin();
    start[size / 3] ^= 1 << 5;
  }
  if (bytes >= kLargeBlock) blocks[static_cast<char*>(data)] = bytes;
}

void forget_block(void* data) {
  if (faults().forgetful_device < 0) return;
  std::lock_guard<std::mutex> lock(blocks_mutex);
  blocks.erase(static_cast<char*>(data));
}

}  // namespace npu_emulation
