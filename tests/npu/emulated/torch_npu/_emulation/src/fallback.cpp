// Every operator without its own kernel: it runs as the CPU's kernel on aliases that share the device's memory.
#include "emulation.h"

#include <ATen/ops/flip.h>
#include <ATen/ops/isinf.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>
#include <algorithm>
#include <atomic>

namespace npu_emulation {
namespace {

using c10::IValue;
constexpr double kLargestHalf = 65504;
std::atomic<bool> overflowed[kMostDevices];

void free_storage(void* context) { delete static_cast<c10::Storage*>(context); }

template <typename Visit>
void each_tensor(const IValue& value, Visit visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& tensor : value.toTensorVector()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector())
      if (tensor) visit(*tensor);
  }
}

template <typename Change>
IValue with_tensors(const IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> changed;
    for (const Tensor& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    return changed;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> changed;
    for (const auto& tensor : value.toOptionalTensorVector())
      changed.push_back(tensor ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
    return changed;
  }
  return value;
}

// The only device of a call. Scalars can be on another device, and indices on the CPU, as with CUDA.
Device device_of(const c10::FunctionSchema& schema, c10::ArrayRef<IValue> arguments) {
  const auto& name = schema.name();
  const bool cpu_indices = name == "aten::index" || name == "aten::_index_put_impl_" || name == "aten::index_put_";
  std::optional<Device> device, other;
  for (const IValue& value : arguments) {
    each_tensor(value, [&](const Tensor& tensor) {
      if (is_npu(tensor)) {
        if (!device) device = tensor.device();
        if (*device != tensor.device() && tensor.dim() > 0) other = tensor.device();
      } else if (tensor.defined() && tensor.dim() > 0 && !cpu_indices) {
        other = tensor.device();
      }
    });
    if (device) continue;
    if (value.isStorage() && value.toStorage().device().type() == NPU) device = value.toStorage().device();
    if (value.isDevice() && value.toDevice().type() == NPU) device = resolve(value.toDevice());
  }
  if (!device) device = Device(NPU, current_device());
  TORCH_CHECK(!other, "Expected all tensors to be on the same device, but found at least two devices, ", *device, " and ", *other,
              "! (when running ", name, ")");
  return *device;
}

void to_cpu(const c10::FunctionSchema& schema, size_t number, IValue& value, Aliases& aliases, Device device) {
  if (value.isStorage()) {
    if (value.toStorage().device().type() == NPU) value = aliases.to_cpu(value.toStorage());
  } else if (value.isDevice()) {
    if (value.toDevice().type() == NPU) value = Device(c10::kCPU);
  } else if (value.isGenerator()) {
    value = host_generator(value.toGenerator());
  } else if (value.isNone()) {
    if (schema.arguments()[number].type()->str() == "Generator?") value = host_generator(default_generator(device.index()));
  } else {
    value = with_tensors(value, [&](const Tensor& tensor) { return is_npu(tensor) ? aliases.to_cpu(tensor) : tensor; });
  }
}

// Sums and products from the other end: another order of additions, like on another device.
void reverse(const std::string& name, IValue* arguments) {
  auto flip = [&](size_t number, at::IntArrayRef dims) {
    arguments[number] = at::flip(arguments[number].toTensor(), dims);
  };
  if (name == "aten::mm") {
    flip(0, 1);
    flip(1, 0);
  } else if (name == "aten::addmm") {
    flip(1, 1);
    flip(2, 0);
  } else if ((name == "aten::sum" || name == "aten::mean") && arguments[1].isIntList()) {
    flip(0, arguments[1].toIntVector());
  }
}

void leave_out_last(const std::string& name, IValue* arguments) {
  if (name != "aten::sum" || !arguments[1].isIntList()) return;
  const Tensor& numbers = arguments[0].toTensor();
  if (numbers.scalar_type() != at::kHalf || !numbers.dim()) return;
  const auto dims = arguments[1].toIntVector();
  Tensor shorter = numbers.clone();
  shorter.select(dims.empty() ? -1 : dims.back(), -1).zero_();
  arguments[0] = shorter;
}

void compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  Aliases aliases;
  const Device device = device_of(schema, c10::ArrayRef<IValue>(*stack).slice(first));
  for (size_t i = 0; i < count; ++i) to_cpu(schema, i, (*stack)[first + i], aliases, device);
  std::vector<Tensor> written;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    if (reversed(device.index())) reverse(schema.name(), stack->data() + first);
    if (device.index() == faults().short_sum_device) leave_out_last(schema.name(), stack->data() + first);
    if (saturates(device.index())) {
      for (size_t i = 0; i < count; ++i)
        if (schema.is_mutable(c10::SchemaArgument(c10::SchemaArgType::input, i)))
          each_tensor((*stack)[first + i], [&](const Tensor& tensor) { written.push_back(tensor); });
    }
    const Slowed slowed(device.index(), schema.name());
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  aliases.write_back();
  const size_t returns = schema.returns().size(), begin = stack->size() - returns;
  for (size_t i = 0; i < returns; ++i) {
    IValue& value = (*stack)[begin + i];
    if (saturates(device.index())) each_tensor(value, [&](const Tensor& tensor) { written.push_back(tensor); });
    each_tensor(value, [&](const Tensor& tensor) {
      if (tensor.device().is_cpu()) spoil(schema.name().substr(schema.name().find(':') + 2), tensor, device.index());
    });
    value = with_tensors(value, [&](const Tensor& tensor) { return aliases.to_npu(tensor, device); });
  }
  for (const Tensor& tensor : written) saturate(tensor, device.index());
}

// Operators whose result the host needs to go on.
const std::unordered_set<std::string> kWaits{"aten::_local_scalar_dense", "aten::bincount", "aten::equal", "aten::is_nonzero",
                                             "aten::masked_select", "aten::nonzero", "aten::_unique2"};

// The same memory in a tensor of its own: an address in a graph stays, even if the program's tensor gets other memory.
// A scalar of the host is part of the graph.
Tensor recorded(const Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  if (is_npu(tensor)) return same_memory(tensor);
  Tensor copy = tensor.clone();
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  return copy;
}

std::vector<Tensor> tensors_in(c10::ArrayRef<IValue> values) {
  std::vector<Tensor> tensors;
  for (const IValue& value : values) each_tensor(value, [&](const Tensor& tensor) { tensors.push_back(tensor); });
  return tensors;
}

bool is_view(const c10::FunctionSchema& schema, c10::ArrayRef<Tensor> arguments, c10::ArrayRef<Tensor> results) {
  if (schema.is_mutable() || results.empty()) return false;
  return std::all_of(results.begin(), results.end(), [&](const Tensor& result) {
    return std::any_of(arguments.begin(), arguments.end(), [&](const Tensor& argument) {
      return is_npu(argument) && is_npu(result) && argument.storage().is_alias_of(result.storage());
    });
  });
}

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Graph* graph = recording();
  if (!graph) return compute(op, stack);
  const auto& schema = op.schema();
  if (kWaits.count(schema.name())) refuse_in_capture(schema.name());
  const size_t returns = schema.returns().size();
  torch::jit::Stack arguments;
  for (const IValue& value : c10::ArrayRef<IValue>(*stack).slice(stack->size() - schema.arguments().size()))
    arguments.push_back(with_tensors(value, recorded));
  const auto read = tensors_in(arguments);
  for (const Tensor& tensor : read) graph->keep(tensor);
  compute(op, stack);
  std::vector<Tensor> results = tensors_in(c10::ArrayRef<IValue>(*stack).slice(stack->size() - returns));
  if (is_view(schema, read, results)) return;
  for (Tensor& result : results) result = recorded(result);
  graph->add(std::move(results), [op, arguments, returns] {
    torch::jit::Stack own = arguments;
    compute(op, &own);
    return tensors_in(c10::ArrayRef<IValue>(own).slice(own.size() - returns));
  });
}

}  // namespace

c10::Storage Aliases::to_cpu(const c10::Storage& storage) {
  for (const auto& [npu, cpu] : storages_)
    if (npu.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) return cpu;
  c10::Storage alias(c10::Storage::use_byte_size_t(), storage.nbytes(),
                     c10::DataPtr(storage.mutable_data(), new c10::Storage(storage), &free_storage, Device(c10::kCPU)),
                     c10::GetCPUAllocator(), /*resizable=*/true);
  storages_.emplace_back(storage, alias);
  return alias;
}

Tensor same_memory(const Tensor& tensor) {
  auto alias = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(tensor.storage()),
                                                        c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return alias;
}

Tensor Aliases::to_cpu(const Tensor& tensor) {
  for (const auto& [npu, cpu] : tensors_)
    if (npu.is_same(tensor)) return cpu;
  TORCH_CHECK(tensor.layout() == c10::kStrided, "the emulated npu knows strided tensors only");
  auto alias = at::detail::make_tensor<c10::TensorImpl>(to_cpu(tensor.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                        tensor.dtype());
  auto* impl = alias.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  tensors_.emplace_back(tensor, alias);
  return alias;
}

c10::Storage Aliases::npu_storage(const c10::Storage& host, Device device) {
  for (const auto& [npu, cpu] : storages_)
    if (cpu.unsafeGetStorageImpl() == host.unsafeGetStorageImpl()) return npu;
  c10::Storage owner(c10::Storage::use_byte_size_t(), host.nbytes(), device_pointer(host, device.index()), allocator(), true);
  storages_.emplace_back(owner, host);
  return owner;
}

Tensor Aliases::to_npu(const Tensor& tensor, Device device) {
  if (!tensor.defined() || tensor.device().type() != c10::kCPU) return tensor;
  for (const auto& [npu, cpu] : tensors_)
    if (cpu.is_same(tensor)) return npu;
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      npu_storage(tensor.storage(), device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), tensor.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return result;
}

void Aliases::write_back() {
  for (auto& [npu, cpu] : storages_) {
    if (npu.data() == cpu.data() && npu.nbytes() == cpu.nbytes()) continue;
    // The call has given the alias other memory: it becomes the device's.
    c10::Storage grown(c10::Storage::use_byte_size_t(), cpu.nbytes(),
                       cpu.set_data_ptr(c10::DataPtr(cpu.mutable_data(), Device(c10::kCPU))), nullptr, false);
    const auto bytes = grown.nbytes();
    npu.set_data_ptr(device_pointer(std::move(grown), npu.device().index()));
    npu.set_nbytes(bytes);
  }
  for (const auto& [npu, cpu] : tensors_) {
    auto* impl = npu.unsafeGetTensorImpl();
    const auto wanted = npu_storage(cpu.storage(), npu.device());
    if (wanted.unsafeGetStorageImpl() != npu.storage().unsafeGetStorageImpl()) impl->set_storage_keep_dtype(wanted);
    if (npu.sizes() != cpu.sizes() || npu.strides() != cpu.strides() || npu.storage_offset() != cpu.storage_offset())
      impl->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
  }
}

void saturate(const Tensor& tensor, DeviceIndex index) {
  if (!saturates(index) || !tensor.defined() || tensor.scalar_type() != at::kHalf) return;
  at::AutoDispatchBelowADInplaceOrView below;
  if (!at::isinf(tensor).any().item<bool>()) return;
  tensor.clamp_(-kLargestHalf, kLargestHalf);
  overflowed[index] = index != faults().silent_device;
}

bool overflow_flag(DeviceIndex index) { return overflowed[index]; }
void clear_overflow_flag(DeviceIndex index) { overflowed[index] = false; }

// The trainer asks whether the device has this operator itself.
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_fused_sgd_.tensor_lr", torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
// Without it torch 2.9 does not find the collectives.
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) { m.fallback(torch::autograd::basicAutogradNotImplementedFallback()); }

}  // namespace npu_emulation
