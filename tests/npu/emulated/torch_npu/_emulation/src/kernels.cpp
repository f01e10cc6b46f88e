// Operators that a device must bring itself: allocation, copies, convolution and dropout.
#include "emulation.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/where.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/flip.h>
#include <ATen/ops/ones_like.h>
#include <torch/library.h>
#include <array>
#include <tuple>

namespace npu_emulation {
namespace {

using c10::IntArrayRef;
const c10::DispatchKeySet kNpuKey(c10::DispatchKey::PrivateUse1);

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device> device,
             std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  OnDevice guard(resolve(device).index());
  return Tensor(at::detail::empty_generic(size, allocator(), kNpuKey, c10::dtype_or_default(dtype), format));
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<Device> device, std::optional<bool>) {
  OnDevice guard(resolve(device).index());
  return Tensor(at::detail::empty_strided_generic(size, stride, allocator(), kNpuKey, c10::dtype_or_default(dtype)));
}

void copy(const Tensor& from, const Tensor& to) {
  Aliases aliases;
  at::AutoDispatchBelowADInplaceOrView below;
  Tensor target = is_npu(to) ? aliases.to_cpu(to) : to;
  const Slowed slowed((is_npu(to) ? to : from).device().index());
  target.copy_(is_npu(from) ? aliases.to_cpu(from) : from);
  if (is_npu(to)) saturate(target, to.device().index());
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (Graph* graph = recording()) {
    if (!is_npu(from) || !is_npu(to)) refuse_in_capture("a copy between host and device");
    graph->keep(from);
    graph->keep(to);
    graph->add({}, [from = same_memory(from), to = same_memory(to)] {
      copy(from, to);
      return std::vector<Tensor>{};
    });
  }
  copy(from, to);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

void on_one_device(const char* name, std::initializer_list<Tensor> tensors) {
  const Device device = tensors.begin()->device();
  for (const Tensor& tensor : tensors)
    TORCH_CHECK(!tensor.defined() || tensor.device() == device,
                "Expected all tensors to be on the same device, but found at least two devices, ", device, " and ",
                tensor.device(), "! (when running ", name, ")");
}

bool is_half(const Tensor& tensor) { return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16; }
// The matrix unit multiplies half precision and adds up in single precision.
Tensor widened(const Tensor& tensor) { return tensor.defined() && is_half(tensor) ? tensor.to(at::kFloat) : tensor; }
bool conv_hf32 = true;  // torch_npu's default
// HF32 keeps 12 bits of an fp32 number.
Tensor to_hf32(const Tensor& tensor) {
  const Tensor narrow = tensor.view(at::kInt).add(0x800).bitwise_and(~0xfff).view(at::kFloat);
  return at::where(tensor.isfinite(), narrow, tensor);
}
Tensor operand(const Tensor& tensor) {
  return conv_hf32 && tensor.scalar_type() == at::kFloat ? to_hf32(tensor) : widened(tensor);
}
Tensor rounded(const Tensor& tensor, at::ScalarType type) { return tensor.defined() ? tensor.to(type) : tensor; }

Tensor convolve(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride,
                IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  const Tensor plain_bias = bias.value_or(Tensor());
  on_one_device("convolution", {input, weight, plain_bias});
  Aliases aliases;
  at::AutoDispatchBelowADInplaceOrView below;
  Tensor x = operand(aliases.to_cpu(input)), w = operand(aliases.to_cpu(weight));
  const Slowed slowed(input.device().index());
  if (reversed(input.device().index()) && groups == 1 && !transposed) {
    x = at::flip(x, 1);
    w = at::flip(w, 1);
  }
  std::optional<Tensor> b;
  if (plain_bias.defined()) b = widened(aliases.to_cpu(plain_bias));
  const Tensor y = at::convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups).to(input.scalar_type());
  saturate(y, input.device().index());
  spoil("convolution", y, input.device().index());
  return aliases.to_npu(y, input.device());
}

// Of a tensor that is or is not there.
Tensor in_graph(const Tensor& tensor) { return tensor.defined() ? same_memory(tensor) : tensor; }

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  const Tensor y = convolve(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups);
  if (Graph* graph = recording()) {
    for (const Tensor& tensor : {input, weight, bias.value_or(Tensor())}) graph->keep(tensor);
    graph->add({same_memory(y)}, [x = same_memory(input), w = same_memory(weight), b = in_graph(bias.value_or(Tensor())),
                                  stride = stride.vec(), padding = padding.vec(), dilation = dilation.vec(), transposed,
                                  output_padding = output_padding.vec(), groups] {
      return std::vector<Tensor>{convolve(x, w, b, stride, padding, dilation, transposed, output_padding, groups)};
    });
  }
  return y;
}

std::tuple<Tensor, Tensor, Tensor> backward_of_convolution(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                        bool transposed, IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> wanted) {
  on_one_device("convolution_backward", {grad, input, weight});
  Aliases aliases;
  at::AutoDispatchBelowADInplaceOrView below;
  const Slowed slowed(input.device().index());
  const std::vector<int64_t> bias_size{transposed ? weight.size(1) * groups : weight.size(0)};
  const auto [dx, dw, db] = at::convolution_backward(
      operand(aliases.to_cpu(grad)), operand(aliases.to_cpu(input)), operand(aliases.to_cpu(weight)),
      wanted[2] ? at::OptionalIntArrayRef(bias_size) : at::OptionalIntArrayRef(), stride, padding, dilation, transposed,
      output_padding, groups, wanted);
  const auto type = input.scalar_type();
  auto result = [&](const Tensor& tensor) {
    const Tensor narrow = rounded(tensor, type);
    saturate(narrow, input.device().index());
    spoil("convolution_backward", narrow, input.device().index());
    return aliases.to_npu(narrow, input.device());
  };
  return {result(dx), result(dw), result(db)};
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                        bool transposed, IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> wanted) {
  const auto results =
      backward_of_convolution(grad, input, weight, stride, padding, dilation, transposed, output_padding, groups, wanted);
  if (Graph* graph = recording()) {
    for (const Tensor& tensor : {grad, input, weight}) graph->keep(tensor);
    const auto& [dx, dw, db] = results;
    graph->add({in_graph(dx), in_graph(dw), in_graph(db)},
               [grad = same_memory(grad), x = same_memory(input), w = same_memory(weight), stride = stride.vec(),
                padding = padding.vec(), dilation = dilation.vec(), transposed, output_padding = output_padding.vec(), groups,
                wanted] {
                 const auto [dx, dw, db] =
                     backward_of_convolution(grad, x, w, stride, padding, dilation, transposed, output_padding, groups, wanted);
                 return std::vector<Tensor>{dx, dw, db};
               });
  }
  return results;
}

std::tuple<Tensor, Tensor> native_dropout(const Tensor& input, double p, std::optional<bool> train) {
  if (!train.value_or(true) || p == 0) return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  // The draws of dropout on a CPU tensor.
  Tensor noise = at::empty_like(input).bernoulli_(1 - p);
  Tensor mask = noise.to(at::kBool);
  return {input.mul(p == 1 ? noise : noise.div_(1 - p)), mask};
}

void record_stream(Tensor&, c10::Stream) {}

}  // namespace

void allow_conv_hf32(bool allowed) { conv_hf32 = allowed; }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("native_dropout", native_dropout);
  m.impl("record_stream", record_stream);
}

}  // namespace npu_emulation
