// Devices, their memory, streams, events, random numbers and pinned memory.
#include "emulation.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <unistd.h>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <thread>

namespace npu_emulation {
namespace {

thread_local DeviceIndex current = 0;
std::atomic<int64_t> allocated[kMostDevices], peak[kMostDevices];
std::atomic<bool> opened[kMostDevices];

DeviceIndex count_devices() {
  if (const char* visible = std::getenv("ASCEND_RT_VISIBLE_DEVICES")) {
    int count = *visible ? 1 : 0;
    for (; *visible; ++visible) count += *visible == ',';
    return static_cast<DeviceIndex>(count);
  }
  const char* count = std::getenv("NPU_EMULATED_DEVICES");
  return static_cast<DeviceIndex>(count ? std::atoi(count) : 8);
}

void check(DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "Invalid device ID ", static_cast<int>(index), ": EE1001 error code is 107001, ",
              static_cast<int>(device_count()), " emulated devices");
}

// The first use of a device opens it, like a context on a real one, which costs seconds and memory.
void open(DeviceIndex index) {
  if (opened[index].exchange(true)) return;
  note("open npu:" + std::to_string(index));
  if (index == faults().open_device) {
    log_error("rtSetDevice failed, device_id=" + std::to_string(index));
    while (faults().open_hangs) std::this_thread::sleep_for(std::chrono::hours(1));
    opened[index] = false;
    TORCH_CHECK(false, "NPU function error: aclrtSetDevice, error code is 507033 (emulated)");
  }
  log_run("attr init success, device_id=" + std::to_string(index));
}

std::string size_text(int64_t bytes) {
  char text[32];
  const double kib = static_cast<double>(bytes) / 1024;
  if (kib >= 1024 * 1024) std::snprintf(text, sizeof text, "%.2f GiB", kib / 1024 / 1024);
  else if (kib >= 1024) std::snprintf(text, sizeof text, "%.2f MiB", kib / 1024);
  else std::snprintf(text, sizeof text, "%.2f KiB", kib);
  return text;
}

void take(DeviceIndex index, int64_t bytes) {
  open(index);
  const int64_t now = allocated[index].fetch_add(bytes) + bytes, limit = memory_limit(index);
  if (limit && now > limit) {
    allocated[index].fetch_sub(bytes);
    const auto used = size_text(now - bytes);
    log_error("rtMalloc failed, device_id=" + std::to_string(index) + ", size=" + std::to_string(bytes));
    TORCH_CHECK_WITH(OutOfMemoryError, false, "NPU out of memory. Tried to allocate ", size_text(bytes), " (NPU ",
                     static_cast<int>(index), "; ", size_text(limit), " total capacity; ", used, " already allocated; ", used,
                     " current active; ", size_text(limit - now + bytes), " free; ", used, " reserved in total by PyTorch)",
                     " If reserved memory is >> allocated memory try setting max_split_size_mb to avoid fragmentation.");
  }
  for (int64_t most = peak[index]; now > most && !peak[index].compare_exchange_weak(most, now);) {
  }
}

struct Block {  // owns the memory of the device's bytes
  c10::DataPtr pointer;
  c10::Storage storage;
  int64_t bytes;
  DeviceIndex index;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated[block->index].fetch_sub(block->bytes);
  forget_block(block->storage ? block->storage.mutable_data() : block->pointer.get());
  delete block;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const DeviceIndex index = current;
    take(index, static_cast<int64_t>(bytes));
    auto host = c10::GetCPUAllocator()->allocate(bytes);
    void* data = host.get();
    remember_block(data, static_cast<int64_t>(bytes), index);
    return {data, new Block{std::move(host), {}, static_cast<int64_t>(bytes), index}, &free_block, Device(NPU, index)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
} device_allocator;
const bool allocator_is_set = (c10::SetAllocator(NPU, &device_allocator), true);

std::mutex pinned_mutex;
std::map<uintptr_t, size_t> pinned;  // start of page-locked memory, and its bytes

void free_pinned(void* data) {
  {
    std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned.erase(reinterpret_cast<uintptr_t>(data));
  }
  c10::free_cpu(data);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const size_t at_least_one = bytes ? bytes : 1;
    void* data = c10::alloc_cpu(at_least_one);
    std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned[reinterpret_cast<uintptr_t>(data)] = at_least_one;
    return {data, data, &free_pinned, Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
} pinned_allocator;

bool is_pinned(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  std::lock_guard<std::mutex> lock(pinned_mutex);
  auto after = pinned.upper_bound(address);
  return after != pinned.begin() && address < std::prev(after)->first + std::prev(after)->second;
}

// Streams only have names: all work is done when the call returns.
struct Event {
  double seconds;
};

double now_s() {
  timespec now{};
  clock_gettime(faults().counts_work ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

thread_local c10::StreamId stream_of[kMostDevices] = {};
std::atomic<c10::StreamId> next_stream{1};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static Device concrete(Device device) { return device.has_index() ? device : Device(NPU, current); }
  static c10::Stream stream(Device device, c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, concrete(device), id); }
  c10::DeviceType type() const override { return NPU; }
  Device getDevice() const override { return Device(NPU, current); }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(Device device) const override {
    check(device.index());
    current = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  DeviceIndex deviceCount() const noexcept override { return device_count(); }
  c10::Stream getStream(Device device) const override { return stream(device, stream_of[concrete(device).index()]); }
  c10::Stream getDefaultStream(Device device) const override { return stream(device, 0); }
  c10::Stream getStreamFromGlobalPool(Device device, bool = false) const override { return stream(device, next_stream++); }
  c10::Stream getNewStream(Device device, int = 0) const override { return stream(device, next_stream++); }
  c10::Stream exchangeStream(c10::Stream wanted) const override {
    const c10::Stream before = getStream(wanted.device());
    stream_of[wanted.device_index()] = wanted.id();
    return before;
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { refuse_in_capture("synchronize"); }
  void synchronizeDevice(const DeviceIndex) const override { refuse_in_capture("synchronize"); }
  void record(void** event, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new Event;
    static_cast<Event*>(*event)->seconds = now_s();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override { refuse_in_capture("synchronize"); }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  double elapsedTime(void* first, void* second, const DeviceIndex) const override {
    return 1e3 * (static_cast<Event*>(second)->seconds - static_cast<Event*>(first)->seconds);
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Generator final : c10::GeneratorImpl {
  at::Generator host;
  explicit Generator(DeviceIndex index, at::Generator of = at::detail::createCPUGenerator())
      : c10::GeneratorImpl(Device(NPU, index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), host(std::move(of)) {}
  void set_current_seed(uint64_t seed) override {
    refuse_in_capture("a seed");
    host.set_current_seed(seed);
  }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "set_offset is not emulated"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "get_offset is not emulated"); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  c10::GeneratorImpl* clone_impl() const override { return new Generator(device_.index(), host.clone()); }
};

const std::vector<at::Generator>& generators() {
  static const std::vector<at::Generator> all = [] {
    std::vector<at::Generator> made;
    for (int i = 0; i < kMostDevices; ++i) made.push_back(at::make_generator<Generator>(static_cast<DeviceIndex>(i)));
    return made;
  }();
  return all;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(DeviceIndex index) const override { return index >= 0 && index < kMostDevices && opened[index]; }
  void init() const override {}
  DeviceIndex deviceCount() const override { return device_count(); }
  void setCurrentDevice(DeviceIndex index) const override { set_device(index); }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    check(index);
    return std::exchange(current, index);
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return index < 0 ? current : exchangeDevice(index); }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override { return default_generator(index); }
  at::Generator getNewGenerator(DeviceIndex index = -1) const override {
    return at::make_generator<Generator>(index < 0 ? current : index);
  }
  Device getDeviceFromPtr(void*) const override { return Device(NPU, current); }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    OnDevice guard(storage.device().index());
    auto larger = device_allocator.allocate(bytes);
    std::memcpy(larger.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr(std::move(larger));
    storage.set_nbytes(bytes);
  }
};
const bool hooks_are_set = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

}  // namespace

DeviceIndex device_count() {
  static const DeviceIndex count = count_devices();
  return count;
}

DeviceIndex current_device() { return current; }

void set_device(DeviceIndex index) {
  check(index);
  current = index;
  open(index);
}

Device resolve(std::optional<Device> device) {
  const Device wanted = device.value_or(Device(NPU));
  TORCH_CHECK(wanted.type() == NPU, "expected an npu device, got ", wanted);
  const DeviceIndex index = wanted.has_index() ? wanted.index() : current;
  check(index);
  return Device(NPU, index);
}

void note(const std::string& line) {
  const char* path = std::getenv("NPU_EMULATED_LOG");
  if (!path) return;
  if (std::FILE* file = std::fopen(path, "a")) {
    std::fprintf(file, "%d %s\n", static_cast<int>(getpid()), line.c_str());
    std::fclose(file);
  }
}

OnDevice::OnDevice(DeviceIndex index) : before(std::exchange(current, index)) {}
OnDevice::~OnDevice() { current = before; }

c10::Allocator* allocator() { return &device_allocator; }

c10::DataPtr device_pointer(c10::Storage host, DeviceIndex index) {
  const auto bytes = static_cast<int64_t>(host.nbytes());
  take(index, bytes);
  void* data = host.mutable_data();
  remember_block(data, bytes, index);
  return {data, new Block{{}, std::move(host), bytes, index}, &free_block, Device(NPU, index)};
}

int64_t memory_allocated(DeviceIndex index) { return allocated[index]; }
int64_t peak_memory(DeviceIndex index) { return peak[index]; }
void reset_peak_memory(DeviceIndex index) { peak[index] = allocated[index].load(); }

const at::Generator& default_generator(DeviceIndex index) {
  if (index < 0) index = current;
  check(index);
  open(index);
  return generators()[index];
}

void seed_closed(DeviceIndex index, uint64_t seed) {
  check(index);
  auto generator = generators()[index];
  generator.set_current_seed(seed);
}

at::Generator host_generator(const at::Generator& generator) {
  TORCH_CHECK(generator.device().type() == NPU, "Expected a 'npu' device type for generator but found '",
              generator.device().type(), "'");
  return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->host;
}

}  // namespace npu_emulation
