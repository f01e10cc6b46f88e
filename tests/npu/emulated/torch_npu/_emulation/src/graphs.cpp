// Captured graphs: while one is recorded, each call of an operator is kept with its arguments; a replay makes the calls
// again on the same memory. A real device runs nothing while it records, so the end of a recording undoes what it wrote.
#include "emulation.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <atomic>
#include <cstring>

namespace npu_emulation {
namespace {

std::atomic<Graph*> current_graph{nullptr};  // autograd's threads record into it too
std::atomic<bool> replays_compute{true};

void copy_bytes(const c10::Storage& from, const c10::Storage& to) {
  TORCH_CHECK(from.nbytes() == to.nbytes(), "a replay of the emulated npu has a result of another size");
  std::memcpy(to.mutable_data(), from.data(), to.nbytes());
}

}  // namespace

Graph* recording() { return current_graph; }

void refuse_in_capture(const std::string& call) {
  TORCH_CHECK(!recording(), call, ": operation not permitted when stream is capturing (emulated)");
}

void compute_in_replays(bool wanted) { replays_compute = wanted; }

void Graph::begin() {
  TORCH_CHECK(!recording(), "another graph is being captured");
  calls_.clear();
  made_.clear();
  device_ = current_device();
  generator_state_ = default_generator(device_).get_state();
  current_graph = this;
}

void Graph::end() {
  TORCH_CHECK(recording() == this, "this graph is not being captured");
  current_graph = nullptr;
  for (const auto& [storage, before] : before_) std::memcpy(storage.mutable_data(), before.data(), before.size());
  before_.clear();
  at::Generator generator = default_generator(device_);
  generator.set_state(generator_state_);
}

void Graph::replay() {
  TORCH_CHECK(recording() != this, "this graph is still being captured");
  if (!replays_compute || is_stale_replay(device_)) return;
  // What watches a program's operators does not see into a graph.
  c10::impl::ExcludeDispatchKeyGuard unseen(c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  for (const auto& call : calls_) call();
}

void Graph::keep(const Tensor& tensor) {
  if (!is_npu(tensor) || made_.count(tensor.storage().unsafeGetStorageImpl())) return;
  const auto& storage = tensor.storage();
  made_.insert(storage.unsafeGetStorageImpl());
  const auto* bytes = static_cast<const char*>(storage.data());
  before_.emplace_back(storage, std::vector<char>(bytes, bytes + storage.nbytes()));
}

void Graph::add(std::vector<Tensor> results, std::function<std::vector<Tensor>()> call) {
  for (const Tensor& result : results)
    if (is_npu(result)) made_.insert(result.storage().unsafeGetStorageImpl());
  calls_.push_back([results = std::move(results), call = std::move(call)] {
    const auto again = call();
    for (size_t i = 0; i < results.size(); ++i)
      if (is_npu(results[i]) && !results[i].storage().is_alias_of(again[i].storage()))
        copy_bytes(again[i].storage(), results[i].storage());
  });
}

}  // namespace npu_emulation
