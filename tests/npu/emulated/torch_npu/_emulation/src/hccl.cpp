// Calls that HCCL refuses are refused here, with its words. gloo does the others on aliases of the tensors.
#include "hccl.h"

#include "emulation.h"

#include <torch/csrc/distributed/c10d/Work.hpp>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <stdexcept>
#include <thread>

namespace npu_emulation {
namespace {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using Tensors = std::vector<Tensor>;
std::atomic<int> collectives{0};  // of this process, in all groups

std::string hccl_error(const std::string& call, int code, int rank, const std::string& detail) {
  char when[32];
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  std::strftime(when, sizeof when, "%Y-%m-%d-%H:%M:%S", localtime_r(&now, &local));
  return call + ":build/CMakeFiles/torch_npu.dir/compiler_depend.ts:0 HCCL function error: " + call + ", error code is " +
         std::to_string(code) + "\n[ERROR] " + when + " (PID:" + std::to_string(getpid()) + ", Device:" +
         std::to_string(current_device()) + ", RankID:" + std::to_string(rank) + ") ERR02200 DIST call hccl api failed.\n" + detail;
}

// gloo's failures in HCCL's words: no peer came in time, or a peer is gone.
std::string translated(const std::string& words, int rank) {
  if (words.find("imed out") != std::string::npos)
    return hccl_error("HcclWait", 9, rank, "EI0002: The wait execution of the Notify register times out. (emulated: " + words + ")");
  return hccl_error("HcclWait", 13, rank, "[suspect remote error] (emulated: " + words + ")");
}

template <typename Call>
auto in_hccls_words(int rank, Call call) {
  try {
    return call();
  } catch (const std::exception& error) {
    throw std::runtime_error(translated(error.what(), rank));
  }
}

struct Work final : c10d::Work {
  Work(WorkPtr gloo, Tensors results, int rank) : gloo_(std::move(gloo)), results_(std::move(results)), group_rank_(rank) {
    std::vector<Device> devices;
    for (const Tensor& tensor : results_)
      if (std::find(devices.begin(), devices.end(), tensor.device()) == devices.end()) devices.push_back(tensor.device());
    future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), devices);
    c10::intrusive_ptr<c10::ivalue::Future> inner;
    try {
      inner = gloo_->getFuture();
    } catch (const std::exception&) {  // gloo's barrier and point-to-point calls do not have one
      return;
    }
    inner->addCallback([future = future_, results = results_, rank](c10::ivalue::Future& done) {
      if (!done.hasError()) return future->markCompleted(c10::IValue(results));
      future->setError(std::make_exception_ptr(std::runtime_error(translated(done.tryRetrieveErrorMessage(), rank))));
    });
    has_future_ = true;
  }
  bool isCompleted() override { return gloo_->isCompleted(); }
  bool isSuccess() const override { return gloo_->isSuccess(); }
  std::exception_ptr exception() const override { return gloo_->exception(); }
  Tensors result() override { return results_; }
  void synchronize() override { wait(kNoTimeout); }
  bool wait(std::chrono::milliseconds timeout) override {
    const bool done = in_hccls_words(group_rank_, [&] { return gloo_->wait(timeout); });
    if (has_future_) future_->wait();
    return done;
  }
  void abort() override { gloo_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    if (!has_future_) {
      wait(kNoTimeout);
      future_->markCompleted(c10::IValue(results_));
      has_future_ = true;
    }
    return future_;
  }

 private:
  WorkPtr gloo_;
  Tensors results_;
  int group_rank_;
  bool has_future_ = false;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

struct Hccl final : c10d::Backend {
  Hccl(c10::intrusive_ptr<c10d::Backend> gloo, double us_per_mib)
      : c10d::Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)), us_per_mib_(us_per_mib) {}
  const std::string getBackendName() const override { return "hccl"; }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    reducible(tensors, options.reduceOp);
    return run("HcclAllReduce", tensors, [&](Tensors& own) { return gloo_->allreduce(own, options); });
  }
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    reducible(tensors, options.reduceOp);
    return run("HcclAllReduce", tensors, [&](Tensors& own) { return gloo_->allreduce_coalesced(own, options); });
  }
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    reducible(tensors, options.reduceOp);
    return run("HcclReduce", tensors, [&](Tensors& own) { return gloo_->reduce(own, options); });
  }
  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return run("HcclBroadcast", tensors, [&](Tensors& own) { return gloo_->broadcast(own, options); });
  }
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    std::vector<Tensors> parts;
    Tensors results;
    for (const Tensors& output : outputs) {
      parts.push_back(aliases(output));
      results.insert(results.end(), output.begin(), output.end());
    }
    auto work = run("HcclAllGather", inputs, [&](Tensors& own) { return gloo_->allgather(parts, own, options); });
    return work;
  }
  WorkPtr _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions& options) override {
    Tensors both{output, input};
    return run("HcclAllGather", both, [&](Tensors& own) { return gloo_->_allgather_base(own[0], own[1], options); });
  }
  WorkPtr gather(std::vector<Tensors>&, Tensors&, const c10d::GatherOptions&) override {
    TORCH_CHECK(false, "ProcessGroupHCCL does not support gather");
  }
  WorkPtr send(Tensors& tensors, int to, int tag) override {
    return run("HcclSend", tensors, [&](Tensors& own) { return gloo_->send(own, to, tag); });
  }
  WorkPtr recv(Tensors& tensors, int from, int tag) override {
    return run("HcclRecv", tensors, [&](Tensors& own) { return gloo_->recv(own, from, tag); });
  }
  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    Tensors none;
    return run("HcclBarrier", none, [&](Tensors&) { return gloo_->barrier(options); });
  }
  uint64_t getSequenceNumberForGroup() override { return gloo_->getSequenceNumberForGroup(); }
  void setSequenceNumberForGroup() override { gloo_->setSequenceNumberForGroup(); }

 private:
  static void reducible(const Tensors& tensors, const c10d::ReduceOp& op) {
    using Kind = c10d::ReduceOp::RedOpType;
    TORCH_CHECK(op == Kind::SUM || op == Kind::PRODUCT || op == Kind::MIN || op == Kind::MAX, "Cannot use this ReduceOp with HCCL");
    for (const Tensor& tensor : tensors)
      TORCH_CHECK(tensor.scalar_type() != at::kDouble && !tensor.is_complex(), "Unsupported data type for HCCL process group");
  }

  static Tensors aliases(const Tensors& tensors) {
    Tensors own;
    for (const Tensor& tensor : tensors) {
      TORCH_CHECK(is_npu(tensor) && tensor.is_non_overlapping_and_dense(), "Tensors must be NPU and dense");
      own.push_back(Aliases().to_cpu(tensor));
    }
    return own;
  }

  template <typename Call>
  WorkPtr run(const char* name, Tensors& tensors, Call call) {
    refuse_in_capture(name);  // whether a real one can capture it is not known
    const int number = ++collectives;
    if (getRank() == faults().fail_rank && number == faults().fail_at) {
      log_error("hbm Multi-bit ECC error in " + std::string(name));
      throw std::runtime_error(hccl_error(name, 4, getRank(), "EI0012: SDMA task execution failed. reason=[hbm Multi-bit ECC error]"));
    }
    if (getRank() == faults().hang_rank && number == faults().hang_at) {
      note("hang in " + std::string(name));
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
    Tensors own = aliases(tensors);
    if (current_device() == faults().lost_part_device && number == faults().lost_part_at)
      for (Tensor& tensor : own) tensor.zero_();
    double bytes = 0;
    for (const Tensor& tensor : own) bytes += static_cast<double>(tensor.nbytes());
    std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(us_per_mib_ * bytes / (1 << 20)));
    return c10::make_intrusive<Work>(in_hccls_words(getRank(), [&] { return call(own); }), tensors, getRank());
  }

  c10::intrusive_ptr<c10d::Backend> gloo_;
  double us_per_mib_;  // by which a slow link delays each collective
};

}  // namespace

c10::intrusive_ptr<c10d::Backend> hccl_over(c10::intrusive_ptr<c10d::Backend> gloo, double us_per_mib) {
  return c10::make_intrusive<Hccl>(std::move(gloo), us_per_mib);
}

}  // namespace npu_emulation
