// SPDX-License-Identifier: MIT
//
// init.cpp - the first and only process of an emulated machine: says which counter
// engine serves there, runs the command lines of /commands and switches off.
//
// Prints: what the commands print, and one line "exit status N: command" each. The last
// line is "all passed", or "failed: N"; without the rseq engine that counts as one more.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pmgate/platform.hpp>

namespace {

void mount_all() {
  (void)::mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
  (void)::mount("proc", "/proc", "proc", 0, nullptr);
  (void)::mount("sysfs", "/sys", "sysfs", 0, nullptr);
  (void)::mount("tmpfs", "/tmp", "tmpfs", 0, nullptr);
  const int console = ::open("/dev/console", O_RDWR);
  for (int fd = 0; console >= 0 && fd < 3; ++fd) ::dup2(console, fd);
}

/// Returns: true if counters use restartable sequences here.
bool print_engine() {
  utsname machine{};
  (void)::uname(&machine);
  std::printf("%s %s, %ld CPUs\n", machine.release, machine.machine,
              ::sysconf(_SC_NPROCESSORS_ONLN));
  pmgate::default_platform::cpu_counter counter(true);
  const bool local = counter.try_add(1) && counter.is_cpu_local();
#if PMGATE_DETAIL_RSEQ
  std::printf("rseq of %u bytes registered by glibc\n", __rseq_size);
#endif
  std::printf("engine: %s\n", local ? "restartable sequences" : "shared counters");
  return local;
}

int run(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> words{std::istream_iterator<std::string>(in), {}};
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::printf("--- %s\n", line.c_str());
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  int result = 0;
  if (::waitpid(child, &result, 0) != child) return 126;
  return WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result);
}

}  // namespace

int main() {
  mount_all();
  int failed = print_engine() ? 0 : 1;
  std::ifstream commands("/commands");
  for (std::string line; std::getline(commands, line);) {
    const int result = run(line);
    std::printf("exit status %d: %s\n", result, line.c_str());
    if (result != 0) ++failed;
  }
  if (failed == 0) {
    std::puts("all passed");
  } else {
    std::printf("failed: %d\n", failed);
  }
  std::fflush(stdout);
  ::sync();
  ::reboot(RB_POWER_OFF);
}
