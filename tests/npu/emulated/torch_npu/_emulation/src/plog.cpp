// The log of CANN's library, written as the real one writes it (cann/runtime, plog_host_log.c and plog_file_mgr.c): lines wait
// in memory for a thread that appends them every 200 ms to debug/plog or run/plog below ASCEND_PROCESS_LOG_PATH, else below
// ASCEND_WORK_PATH/log, else below HOME/ascend/log. With ASCEND_SLOG_PRINT_TO_STDOUT=1 they are printed at once instead.
// A process that ends by _exit or a signal loses the lines that wait. Nothing is rotated: a test writes kilobytes.
#include "emulation.h"

#include <pthread.h>
#include <sys/time.h>
#include <unistd.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <new>
#include <thread>

namespace npu_emulation {
namespace {

std::string moment(const char* form, const char* fraction) {
  timeval now{};
  gettimeofday(&now, nullptr);
  std::tm local{};
  localtime_r(&now.tv_sec, &local);
  char seconds[32], text[64];
  std::strftime(seconds, sizeof seconds, form, &local);
  std::snprintf(text, sizeof text, fraction, seconds, static_cast<long>(now.tv_usec / 1000), static_cast<long>(now.tv_usec % 1000));
  return text;
}

std::filesystem::path root() {
  auto set = [](const char* variable) { return std::filesystem::path(std::getenv(variable) ? std::getenv(variable) : ""); };
  if (const auto path = set("ASCEND_PROCESS_LOG_PATH"); !path.empty()) return path;
  if (const auto path = set("ASCEND_WORK_PATH"); !path.empty()) return path / "log";
  return set("HOME") / "ascend/log";
}

struct Log {
  std::mutex mutex;
  std::string waiting[2];    // of debug, of run
  std::string file_name[2];  // of this process
  bool has_thread = false;

  void flush() {
    for (int kind = 0; kind < 2; ++kind) {
      std::string lines;
      {
        std::lock_guard<std::mutex> lock(mutex);
        lines.swap(waiting[kind]);
      }
      if (lines.empty()) continue;
      std::error_code failed;  // the real one drops the lines too: a full disk or a missing right harms no training
      const auto folder = root() / (kind ? "run" : "debug") / "plog";
      std::filesystem::create_directories(folder, failed);
      if (file_name[kind].empty()) file_name[kind] = "plog-" + std::to_string(getpid()) + "_" + moment("%Y%m%d%H%M%S", "%s%03ld") + ".log";
      std::ofstream(folder / file_name[kind], std::ios::app) << lines;
    }
  }

  ~Log() { flush(); }
};

Log& log() {
  static Log one;
  return one;
}

void after_fork() {  // the child has no thread, its own file, and none of the parent's lines
  new (&log().mutex) std::mutex;
  log().has_thread = false;
  for (int kind = 0; kind < 2; ++kind) {
    log().waiting[kind].clear();
    log().file_name[kind].clear();
  }
}
const bool fork_is_handled = (pthread_atfork([] { log().mutex.lock(); }, [] { log().mutex.unlock(); }, &after_fork), true);

void write(int kind, const std::string& level, const std::string& text) {
  std::lock_guard<std::mutex> lock(log().mutex);
  const auto pid = std::to_string(getpid());
  const auto line = "[" + level + "] EMULATED(" + pid + ",python):" + moment("%Y-%m-%d-%H:%M:%S", "%s.%03ld.%03ld") + " [" + pid + "]" + text + "\n";
  const char* printed = std::getenv("ASCEND_SLOG_PRINT_TO_STDOUT");
  if (printed && std::string(printed) == "1") {
    std::fputs(line.c_str(), stdout);
    std::fflush(stdout);
    return;
  }
  log().waiting[kind] += line;
  if (log().has_thread) return;
  log().has_thread = true;
  std::thread([] {
    while (true) {
      log().flush();
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
  }).detach();
}

}  // namespace

void log_run(const std::string& text) { write(1, "EVENT", text); }
void log_error(const std::string& text) { write(0, "ERROR", text); }

}  // namespace npu_emulation
