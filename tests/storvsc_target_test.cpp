// SPDX-License-Identifier: MIT
//
// storvsc_target_test.cpp - disk images, and every command and error of the disk and
// the drive. Numbers in names are those of the protocol's scenarios.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storvsc/disk_image.hpp"
#include "storvsc/protocol.hpp"
#include "storvsc/scsi_target.hpp"

namespace {

using storvsc::data_direction;
using storvsc::disk_image;
using storvsc::image_access;
using storvsc::image_error;
using storvsc::scsi_address;
using storvsc::scsi_reply;
using bytes = std::vector<unsigned char>;

static_assert(!std::is_copy_constructible_v<disk_image>);
static_assert(!std::is_move_constructible_v<disk_image>);
static_assert(!std::is_copy_constructible_v<storvsc::scsi_target>);
static_assert(storvsc::load_be<std::uint32_t>(std::array<unsigned char, 4>{1, 2, 3, 4}.data()) ==
              0x01020304);

bytes hex(const std::string& text) {
  bytes out;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word[0] == '+')
      out.resize(out.size() + std::stoul(word.substr(1)));
    else
      out.push_back(static_cast<unsigned char>(std::stoul(word, nullptr, 16)));
  }
  return out;
}

std::shared_ptr<disk_image> blank(std::uint64_t size) {
  auto image = std::make_shared<disk_image>();
  REQUIRE(image->create_temporary(size) == image_error::none);
  return image;
}

constexpr scsi_address disk{0, 0, 0};
constexpr scsi_address drive{0, 0, 1};

struct controller {
  storvsc::scsi_target target;
  bytes data = bytes(8192, 0xEE);

  controller() {
    REQUIRE(target.attach_disk(disk, blank(20480 * 512)));
    REQUIRE(target.attach_drive(drive, nullptr));
  }
  /// Runs a command with a buffer in three uneven pieces.
  scsi_reply run(scsi_address at, const std::string& cdb, std::size_t size = 0,
                 data_direction direction = data_direction::from_device) {
    storvsc::scsi_request r;
    r.at = at;
    const bytes command = hex(cdb);
    std::copy(command.begin(), command.end(), r.cdb.begin());
    r.direction = size == 0 ? data_direction::none : direction;
    const std::size_t first = size / 3;
    const std::size_t second = size / 2;
    const std::span<unsigned char> all(data.data(), size);
    const std::span<unsigned char> pieces[] = {all.first(first), all.subspan(first, second - first),
                                               all.subspan(second)};
    r.data = pieces;
    return target.execute(r);
  }
  scsi_reply write(const std::string& cdb, std::size_t size) {
    return run(disk, cdb, size, data_direction::to_device);
  }
  /// The parameter data that a command returns.
  bytes ask(scsi_address at, const std::string& cdb, std::size_t size = 256) {
    std::fill(data.begin(), data.end(), static_cast<unsigned char>(0xEE));
    const scsi_reply reply = run(at, cdb, size);
    CHECK(reply.srb_status == 1);
    CHECK(data[reply.transferred] == 0xEE);  // nothing beyond what was reported
    return {data.begin(), data.begin() + reply.transferred};
  }
};

/// "srb scsi KEY ASC ASCQ", or "srb scsi" without sense.
std::string told(const scsi_reply& r) {
  char text[40];
  const auto& s = r.sense;
  if ((r.srb_status & 0x80) == 0)
    std::snprintf(text, sizeof text, "%02X %02X", r.srb_status, r.scsi_status);
  else
    std::snprintf(text, sizeof text, "%02X %02X %02X/%02X/%02X", r.srb_status, r.scsi_status, s[2],
                  s[12], s[13]);
  if (r.scsi_status != 0) CHECK(r.transferred == 0);
  return text;
}

const std::string read_one = "28 00 00 00 00 00 00 00 01";
const std::string poll_media = "4A 01 00 00 10 00 00 00 08 00";

}  // namespace

TEST_SUITE("storvsc_target") {

// ---- Images ----------------------------------------------------------------

TEST_CASE("a temporary image is zeros, and its file is gone with it") {
  std::string name;
  {
    const auto image = blank(1000);  // one sector and a bit
    name = image->path();
    CHECK(image->sector_count() == 1);
    CHECK(std::filesystem::exists(name));
    bytes data(512, 1);
    const std::span<unsigned char> piece(data);
    CHECK(image->read(0, {&piece, 1}, 512));
    CHECK(data == bytes(512));
    CHECK_FALSE(image->read(512, {&piece, 1}, 512));
    CHECK_FALSE(image->read(0, {&piece, 1}, 513));
  }
  CHECK_FALSE(std::filesystem::exists(name));
}

TEST_CASE("an image that exists keeps its size, and its last part of a sector") {
  const auto folder =
      std::filesystem::temp_directory_path() / ("storvsc_test_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const std::string file = (folder / "disk").string();
  std::ofstream(file, std::ios::binary) << std::string(1300, 'x');

  disk_image image;
  CHECK(image.open(file, 1024) == image_error::none);
  CHECK(image.sector_count() == 2);
  bytes data(1024, 'y');
  const std::span<unsigned char> piece(data);
  CHECK(image.write(0, {&piece, 1}, 1024));
  CHECK_FALSE(image.write(512, {&piece, 1}, 1024));
  CHECK(image.flush());
  CHECK(std::filesystem::file_size(file) == 1300);
  CHECK(image.open(file, 0, image_access::read_only) == image_error::none);
  CHECK_FALSE(image.write(0, {&piece, 1}, 512));
  std::string content(1300, '?');
  std::ifstream(file, std::ios::binary).read(content.data(), 1300);
  CHECK(content == std::string(1024, 'y') + std::string(276, 'x'));

  CHECK(image.open(file, 1301) == image_error::too_small);
  CHECK_FALSE(image.is_open());
  CHECK(image.open((folder / "none").string(), 0) == image_error::not_found);
  CHECK_FALSE(std::filesystem::exists(folder / "none"));
  CHECK(image.open(folder.string(), 0) == image_error::not_regular_file);
  CHECK(image.open(folder.string(), 0, image_access::read_only) == image_error::not_regular_file);
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(image.open((folder / "pipe").string(), 0) == image_error::not_regular_file);
  if (::geteuid() != 0) {
    std::filesystem::permissions(file, std::filesystem::perms::none);
    CHECK(image.open(file, 0) == image_error::not_permitted);
  }
  std::filesystem::remove_all(folder);
}

// ---- Disk ------------------------------------------------------------------

TEST_CASE_FIXTURE(controller, "INQUIRY tells of a disk, its pages and its name") {
  const bytes standard = ask(disk, "12 00 00 00 FF");
  CHECK(standard.size() == 104);
  CHECK(bytes(standard.begin(), standard.begin() + 36) ==
        hex("00 00 05 02 63 00 00 02 4D 73 66 74 20 20 20 20 56 69 72 74 75 61 6C 20 44 69 73 6B "
            "20 20 20 20 "
            "31 2E 30 20"));
  CHECK(ask(disk, "12 00 00 00 24").size() == 36);
  CHECK(ask(disk, "12 01 00 00 FF") == hex("00 00 00 02 00 83"));
  CHECK(ask(disk, "12 01 83 00 FF") ==
        hex("00 83 00 14 01 03 00 10 60 02 24 80 70 6D 67 61 74 65 00 00 00 00 00 00"));
  CHECK(told(run(disk, "12 00 83 00 FF", 255)) == "86 02 05/24/00");
  CHECK(told(run(disk, "12 01 B0 00 FF", 255)) == "86 02 05/24/00");
}

TEST_CASE_FIXTURE(controller, "23: REPORT LUNS lists the units of the target, whoever is asked") {
  CHECK(ask(disk, "A0 00 00 00 00 00 00 00 10 00", 4096) == hex("00 00 00 10 +12 00 01 +6"));
  CHECK(ask({0, 0, 9}, "A0 00 00 00 00 00 00 00 10 00", 4096).size() == 24);
  CHECK(ask({0, 1, 0}, "A0 00 00 00 00 00 00 00 10 00", 4096) == bytes(8));
  CHECK(ask(disk, "A0 00 00 00 00 00 00 00 00 04", 4096) == hex("00 00 00 10"));
}

TEST_CASE_FIXTURE(controller, "24: capacity is the last block, in both lengths") {
  CHECK(ask(disk, "25") == hex("00 00 4F FF 00 00 02 00"));
  CHECK(ask(disk, "9E 10 00 00 00 00 00 00 00 00 00 00 00 20") == hex("+6 4F FF 00 00 02 00 +20"));
  CHECK(ask(disk, "9E 10 00 00 00 00 00 00 00 00 00 00 00 20", 12).size() == 12);
  CHECK(told(run(disk, "9E 10 00 00 00 00 00 00 00 00 00 00 00 20", 11)) == "92 02 05/24/00");
  CHECK(told(run(disk, "9E 11 00 00 00 00 00 00 00 00 00 00 00 20", 32)) == "86 02 05/24/00");
  CHECK(told(run(disk, "25", 7)) == "92 02 05/24/00");
}

TEST_CASE_FIXTURE(controller, "blocks are written and read back through pieces of any size") {
  for (std::size_t i = 0; i < 2048; ++i) data[i] = static_cast<unsigned char>(i * 7);
  const bytes expected(data.begin(), data.begin() + 2048);
  const scsi_reply written = write("8A 08 00 00 00 00 00 00 4F FC 00 00 00 04", 2048);
  CHECK(written.srb_status == 1);
  CHECK(written.transferred == 2048);

  CHECK(ask(disk, "28 00 00 00 4F FC 00 00 04", 4096) == expected);  // the buffer may be larger
  CHECK(ask(disk, "88 00 00 00 00 00 00 00 4F FF 00 00 00 01", 512) ==
        bytes(expected.begin() + 1536, expected.end()));
  CHECK(target.counters(disk).reads == 2);
  CHECK(target.counters(disk).writes == 1);
}

TEST_CASE_FIXTURE(controller, "25: no address, count or buffer that is out of range moves a byte") {
  const std::string bad = "86 02 05/21/00";
  CHECK(told(run(disk, "28 00 00 00 4F FF 00 00 02", 1024)) == bad);
  CHECK(told(run(disk, "88 00 80 00 00 00 00 00 00 00 00 00 00 01", 512)) == bad);
  CHECK(told(run(disk, "88 00 FF FF FF FF FF FF FF FF FF FF FF FF", 512)) == bad);
  CHECK(told(run(disk, "88 00 00 00 00 00 00 00 00 00 FF FF FF FF", 512)) == bad);
  CHECK(told(run(disk, "28 00 00 00 00 00 00 00 00", 512)) == bad);
  CHECK(told(run(disk, "28 00 00 00 00 00 00 00 02", 1023)) == bad);
  CHECK(told(run(disk, read_one, 0)) == bad);
  CHECK(told(run(disk, read_one, 512, data_direction::to_device)) == bad);
  CHECK(told(run(disk, "2A 00 00 00 00 00 00 00 01", 512)) == bad);
  CHECK(target.counters(disk).reads + target.counters(disk).writes == 0);
}

TEST_CASE_FIXTURE(controller, "27: SYNCHRONIZE CACHE and a stop flush, a start does not") {
  CHECK(told(run(disk, "35")) == "01 00");
  CHECK(told(run(disk, "1B 00 00 00 00")) == "01 00");
  CHECK(target.counters(disk).flushes == 2);
  CHECK(told(run(disk, "91")) == "01 00");
  CHECK(told(run(disk, "1B 00 00 00 01")) == "01 00");
  CHECK(target.counters(disk).flushes == 3);
  CHECK(told(run(disk, "1B 01 00 00 00")) == "86 02 05/24/00");
  CHECK(told(run(disk, "1E 00 00 00 01")) == "01 00");
}

TEST_CASE_FIXTURE(controller, "MODE SENSE knows the caching page, and says what it may say") {
  CHECK(ask(disk, "1A 00 3F 00 FF") == hex("0F 00 10 00 08 0A 04 +9"));
  CHECK(ask(disk, "5A 00 08 00 00 00 00 00 FF") == hex("00 12 00 10 +4 08 0A 04 +9"));
  CHECK(ask(disk, "1A 00 48 00 FF") == hex("0F 00 10 00 08 0A 00 +9"));
  CHECK(ask(disk, "1A 00 3F 00 04") == hex("0F 00 10 00"));
  CHECK(told(run(disk, "1A 00 C8 00 FF", 255)) == "86 02 05/24/00");
  CHECK(told(run(disk, "1A 00 2A 00 FF", 255)) == "86 02 05/24/00");
}

TEST_CASE_FIXTURE(controller, "sense is kept until it is asked for") {
  CHECK(told(run(disk, "FF")) == "86 02 05/20/00");
  CHECK(ask(disk, "03 00 00 00 12") == hex("70 00 05 00 00 00 00 0A 00 00 00 00 20 00 +4"));
  CHECK(ask(disk, "03 00 00 00 12") == hex("70 00 00 00 00 00 00 0A +10"));
}

TEST_CASE_FIXTURE(controller,
                  "media errors, write protection and a changed capacity are reported") {
  REQUIRE(target.damage_blocks(disk, 10, 2));
  CHECK(told(run(disk, "28 00 00 00 00 08 00 00 03", 1536)) == "84 02 03/11/00");
  CHECK(told(write("2A 00 00 00 00 0B 00 00 01", 512)) == "84 02 03/03/00");
  CHECK(told(run(disk, "28 00 00 00 00 0C 00 00 01", 512)) == "01 00");
  REQUIRE(target.damage_blocks(disk, 10, 0));
  CHECK(told(run(disk, "28 00 00 00 00 0A 00 00 02", 1024)) == "01 00");

  REQUIRE(target.report_capacity_change(disk));
  CHECK(ask(disk, "12 00 00 00 24").size() == 36);
  CHECK(told(run(disk, "00")) == "84 02 06/2A/09");
  CHECK(told(run(disk, "00")) == "01 00");

  const auto image = blank(4096);
  auto locked = std::make_shared<disk_image>();
  REQUIRE(locked->open(image->path(), 4096, image_access::read_only) == image_error::none);
  REQUIRE(target.attach_disk({0, 0, 5}, locked));
  CHECK_FALSE(target.attach_disk({0, 0, 5}, image));
  CHECK(told(run({0, 0, 5}, "2A 00 00 00 00 00 00 00 01", 512, data_direction::to_device)) ==
        "84 02 07/27/00");
  CHECK(ask({0, 0, 5}, "1A 00 3F 00 04")[2] == 0x90);
  std::filesystem::resize_file(image->path(), 512);  // somebody cuts the file short behind our back
  CHECK(told(run({0, 0, 5}, "28 00 00 00 00 00 00 00 02", 1024)) == "84 02 03/11/00");
}

TEST_CASE_FIXTURE(controller,
                  "an address without a unit answers what finds units, and nothing else") {
  const scsi_address nowhere{1, 2, 3};
  CHECK(ask(nowhere, "12 00 00 00 24")[0] == 0x7F);
  CHECK(told(run(nowhere, "12 01 00 00 24", 36)) == "86 02 05/24/00");
  CHECK(told(run(nowhere, "00")) == "20 02");
  CHECK(told(run(nowhere, "03 00 00 00 12", 18)) == "20 02");
  CHECK_FALSE(target.eject(nowhere));
  CHECK_FALSE(target.eject(disk));
  CHECK_FALSE(target.detach(nowhere));
}

// ---- Drive -----------------------------------------------------------------

TEST_CASE_FIXTURE(controller, "15: an empty drive has no medium, and is a drive all the same") {
  CHECK(told(run(drive, "00")) == "84 02 02/3A/01");
  CHECK(told(run(drive, "25", 8)) == "84 02 02/3A/01");
  CHECK(told(run(drive, read_one, 2048)) == "84 02 02/3A/01");
  CHECK(ask(drive, "12 00 00 00 FF") == hex("05 80 00 02 1F 00 00 00 4D 73 66 74 20 20 20 20 56 69 "
                                            "72 74 75 61 6C 20 44 56 44 2D 52 4F 4D 20 "
                                            "31 2E 30 20"));
  CHECK(ask(drive, "12 01 83 00 FF").size() == 32);
  CHECK(told(run(drive, "FF")) == "84 02 05/20/00");
  CHECK(told(run(drive, "12 00 01 00 FF", 255)) == "84 02 05/24/00");
  CHECK(told(run(drive, "12 00 00 00 FF", 20)) == "12 02");
  CHECK(ask(drive, poll_media) == hex("00 06 04 7E 00 00 00 00"));
}

TEST_CASE("26: a medium is announced once, then there is nothing to tell") {
  controller c;
  REQUIRE(c.target.attach_drive({0, 0, 2}, blank(64 * 2048)));
  CHECK(c.ask({0, 0, 2}, poll_media) == hex("00 06 04 7E 03 01 00 00"));
  CHECK(c.ask({0, 0, 2}, poll_media) == hex("00 06 04 7E 02 02 00 00"));
  CHECK(c.ask({0, 0, 2}, poll_media) == hex("00 06 04 7E 00 02 00 00"));
  CHECK(c.target.counters({0, 0, 2}).event_polls == 3);
  CHECK(c.ask({0, 0, 2}, "25") == hex("00 00 00 3F 00 00 08 00"));
  CHECK(c.ask({0, 0, 2}, read_one, 2048) == bytes(2048));
}

TEST_CASE_FIXTURE(controller, "media come and go, and events are told in order") {
  REQUIRE(target.insert(drive, blank(2048)));
  CHECK(ask(drive, "4A 01 00 00 10 00 00 00 04 00") == hex("00 06 04 7E"));  // cut short: not told
  CHECK(ask(drive, poll_media) == hex("00 06 04 7E 02 02 00 00"));
  CHECK(told(run(drive, "00")) == "01 00");
  CHECK(target.eject(drive));
  CHECK(told(run(drive, "00")) == "84 02 02/3A/02");
  CHECK(ask(drive, poll_media) == hex("00 06 04 7E 03 01 00 00"));
  CHECK(ask(drive, poll_media) == hex("00 06 04 7E 00 01 00 00"));

  REQUIRE(target.insert(drive, blank(2048)));
  REQUIRE(target.insert(drive, blank(4096)));
  for (const int event : {2, 3, 2, 0}) CHECK(ask(drive, poll_media)[4] == event);
  CHECK(told(run(drive, "4A 00 00 00 10 00 00 00 08 00", 8)) == "84 02 05/24/00");
  CHECK(ask(drive, "4A 01 00 00 02 00 00 00 08 00") == hex("00 02 00 7E"));
}

TEST_CASE_FIXTURE(controller, "the guest may eject and load, and may prevent both hands from it") {
  CHECK(told(run(drive, "1E 00 00 00 01")) == "01 00");
  CHECK(told(run(drive, "1B 00 00 00 02")) == "84 02 02/53/02");
  REQUIRE(target.insert(drive, blank(2048)));
  CHECK(told(run(drive, "1B 00 00 00 02")) == "84 02 05/53/02");
  CHECK_FALSE(target.eject(drive));
  CHECK(ask(drive, poll_media)[4] == 2);
  CHECK(ask(drive, poll_media) == hex("00 06 04 7E 01 02 00 00"));  // the button was pressed

  CHECK(told(run(drive, "1E 00 00 00 00")) == "01 00");
  CHECK(told(run(drive, "1B 00 00 00 02")) == "01 00");
  CHECK(told(run(drive, "00")) == "84 02 02/3A/02");
  CHECK(told(run(drive, "1B 00 00 00 03")) == "01 00");
  CHECK(told(run(drive, "00")) == "01 00");
  for (const int event : {3, 2, 0}) CHECK(ask(drive, poll_media)[4] == event);
}

TEST_CASE_FIXTURE(controller, "units, media and commands may be changed and run at the same time") {
  std::thread operator_thread([this] {
    for (int i = 0; i < 200; ++i) {
      (void)target.insert(drive, blank(2048));
      (void)target.eject(drive);
      (void)target.attach_drive({0, 0, 9}, nullptr);
      (void)target.detach({0, 0, 9});
    }
  });
  for (int i = 0; i < 2000; ++i) {
    (void)run(drive, poll_media, 8);
    (void)run(drive, read_one, 2048);
    (void)run({0, 0, 9}, "00");
  }
  operator_thread.join();
  CHECK(target.counters(drive).event_polls == 2000);
}

}  // TEST_SUITE
