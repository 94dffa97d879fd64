// SPDX-License-Identifier: MIT
//
// The program storvsc_hibernate from outside: its exit status, what it says to bad input,
// its report, and what it leaves of a user's disk.
#include <doctest/doctest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

namespace {

struct outcome {
  int status;
  std::string text;  // standard output and error
};

outcome run(const std::string& arguments) {
  const std::string command = std::string(STORVSC_HIBERNATE) + " " + arguments + " 2>&1";
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  outcome result{0, {}};
  std::array<char, 4096> part;
  while (const std::size_t n = std::fread(part.data(), 1, part.size(), pipe)) {
    result.text.append(part.data(), n);
  }
  const int ended = ::pclose(pipe);
  result.status = WIFEXITED(ended) ? WEXITSTATUS(ended) : -1;
  return result;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder that is removed with what is in it.
struct scratch_folder {
  scratch_folder() { REQUIRE(::mkdtemp(name.data()) != nullptr); }
  ~scratch_folder() {
    for (const char* file : {"disk", "report"}) ::unlink((name + "/" + file).c_str());
    ::rmdir(name.c_str());
  }
  std::string name = "/tmp/pmgate_cli_XXXXXX";
};

/// A file of random bytes.
void make_disk(const std::string& path, std::size_t size) {
  std::mt19937_64 random(7);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  std::ofstream(path, std::ios::binary) << bytes;
}

std::size_t lines_of(const std::string& text) {
  std::size_t lines = 0;
  for (const char c : text) lines += c == '\n';
  return lines;
}

}  // namespace

TEST_SUITE("storvsc_hibernate") {

TEST_CASE("bad usage is one sentence, and exit status 2") {
  for (const char* arguments :
       {"--bogus", "--policy nonsense", "--cycles 0", "--cycles ten", "--cycles", "--seed -1",
        "--submitters 65", "--poll-ms 1001", "--disk /nonexistent/disk", "--disk /tmp",
        "--disk /dev/null", "--disk=", "--json /nonexistent/report"}) {
    CAPTURE(arguments);
    const outcome result = run(arguments);

    CHECK(result.status == 2);
    CHECK(lines_of(result.text) == 1);
    CHECK(result.text.starts_with("storvsc_hibernate: "));
  }
}

TEST_CASE("help tells every option and succeeds") {
  const outcome result = run("--help");

  CHECK(result.status == 0);
  for (const char* option : {"--disk", "--policy", "--cycles", "--submitters", "--poll-ms",
                             "--seed", "--json"}) {
    CHECK(result.text.find(option) != std::string::npos);
  }
}

TEST_CASE("a disk that is too small is refused and left alone") {
  const scratch_folder folder;
  const std::string disk = folder.name + "/disk";
  make_disk(disk, 1000);
  const std::string before = read_file(disk);

  const outcome result = run("--disk " + disk);

  CHECK(result.status == 2);
  CHECK(read_file(disk) == before);
}

TEST_CASE("an unsafe policy alone fails, and says where it would have faulted") {
  const outcome result = run("--policy quiesce-5.7 --cycles 10");

  CHECK(result.status == 1);
  CHECK(result.text.find("would fault at 0x") != std::string::npos);
}

TEST_CASE("a cure alone succeeds and reports as JSON") {
  const scratch_folder folder;
  const std::string report = folder.name + "/report";

  const outcome result = run("--policy host-block --cycles 3 --json " + report);

  CHECK(result.status == 0);
  const std::string json = read_file(report);
  CHECK(json.starts_with("{\"policies\":["));
  CHECK(json.find("\"policy\":\"host-block\",\"cycles\":3,\"ios\":") != std::string::npos);
  CHECK(json.find("\"violations\":0,\"lost\":0,\"corrupted\":0,\"errors\":0,"
                  "\"max_stall_us\":") != std::string::npos);
}

TEST_CASE("of a user's disk only the working set changes, and never the size") {
  const scratch_folder folder;
  const std::string disk = folder.name + "/disk";
  constexpr std::size_t working_set = 64 << 20;
  constexpr std::size_t size = working_set + 1'000'003;  // neither blocks nor sectors
  make_disk(disk, size);
  const std::string before = read_file(disk);

  const outcome result = run("--policy quiesce-6.12 --cycles 5 --disk " + disk);

  CHECK(result.status == 0);
  const std::string after = read_file(disk);
  REQUIRE(after.size() == size);
  CHECK(after != before);
  CHECK(after.substr(working_set) == before.substr(working_set));
}

}  // TEST_SUITE
