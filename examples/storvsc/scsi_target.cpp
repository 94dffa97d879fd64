// SPDX-License-Identifier: MIT
//
// storvsc/scsi_target.cpp - every command that a disk and a drive answer.
#include "storvsc/scsi_target.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <deque>
#include <span>
#include <utility>
#include <vector>

namespace storvsc {
namespace {

constexpr std::uint8_t read_capacity_16_action = 0x10;
constexpr std::uint32_t drive_block_size = 2048;

std::uint64_t size_of(data_buffer data) noexcept {
  std::uint64_t bytes = 0;
  for (const auto& piece : data) bytes += piece.size();
  return bytes;
}

/// Copies `from` into the pieces.  Precondition: it fits.
void scatter(data_buffer to, std::span<const unsigned char> from) noexcept {
  for (const auto& piece : to) {
    const std::size_t count = std::min(piece.size(), from.size());
    if (count != 0) std::memcpy(piece.data(), from.data(), count);
    from = from.subspan(count);
    if (from.empty()) return;
  }
}

/// The buffer of a command, if it is for this direction.
data_buffer buffer_for(const scsi_request& r, data_direction wanted) noexcept {
  return r.direction == wanted ? r.data : data_buffer{};
}

scsi_reply good(std::uint64_t transferred = 0) noexcept {
  scsi_reply reply;
  reply.transferred = static_cast<std::uint32_t>(transferred);
  return reply;
}

scsi_reply check_condition(std::uint8_t code, const sense_data& sense) noexcept {
  return {static_cast<std::uint8_t>(code | srb_status::autosense_valid),
          scsi_status::check_condition, 0, sense};
}

scsi_reply check_condition_without_sense(std::uint8_t code) noexcept {
  return {code, scsi_status::check_condition, 0, {}};
}

constexpr sense_data bad_cdb_field = make_sense(0x05, 0x24, 0x00);

/// Fields of a command that moves blocks.
struct block_range {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

block_range range_of(const scsi_cdb& cdb) noexcept {
  const bool wide = cdb[0] == opcode::read_16 || cdb[0] == opcode::write_16;
  if (wide) return {load_be<std::uint64_t>(&cdb[2]), load_be<std::uint32_t>(&cdb[10])};
  return {load_be<std::uint32_t>(&cdb[2]), load_be<std::uint16_t>(&cdb[7])};
}

}  // namespace

// ---- What disks and drives have in common ----------------------------------

namespace detail {

class scsi_unit {
public:
  virtual ~scsi_unit() = default;
  virtual scsi_reply execute(const scsi_request& r) noexcept = 0;

  // Called under the target's mutex, as everything here.
  virtual bool insert(std::shared_ptr<disk_image> /*medium*/) { return false; }
  virtual bool eject() { return false; }
  virtual bool report_capacity_change() { return false; }

  scsi_counters counters;
  block_range damaged;

protected:
  scsi_unit(std::uint8_t type, std::uint32_t block, std::uint8_t bad_request) noexcept
      : type_(type), block_(block), bad_request_(bad_request) {}

  [[nodiscard]] scsi_reply fail(std::uint8_t code, std::uint8_t key, std::uint8_t asc,
                                std::uint8_t ascq) noexcept {
    last_sense_ = make_sense(key, asc, ascq);
    return check_condition(code, last_sense_);
  }
  [[nodiscard]] scsi_reply bad_field() noexcept { return fail(bad_request_, 0x05, 0x24, 0x00); }
  [[nodiscard]] scsi_reply unknown_opcode() noexcept {
    return fail(bad_request_, 0x05, 0x20, 0x00);
  }
  [[nodiscard]] scsi_reply out_of_range() noexcept {
    return fail(srb_status::invalid_request, 0x05, 0x21, 0x00);
  }
  [[nodiscard]] virtual scsi_reply overrun() noexcept = 0;

  /// Answers with parameter data, cut to what the CDB allows.
  [[nodiscard]] scsi_reply answer(const scsi_request& r, std::span<const unsigned char> data,
                                  std::uint64_t allowed) noexcept {
    const data_buffer to = buffer_for(r, data_direction::from_device);
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(data.size(), allowed));
    if (size_of(to) < count) return overrun();
    scatter(to, data.first(count));
    return good(count);
  }

  [[nodiscard]] scsi_reply request_sense(const scsi_request& r) noexcept {
    const sense_data told = std::exchange(last_sense_, make_sense(0, 0, 0));
    return answer(r, std::span(told).first(sense_size_before_win8), r.cdb[4]);
  }

  [[nodiscard]] scsi_reply inquiry(const scsi_request& r, std::span<const unsigned char> standard,
                                   std::span<const unsigned char> designator) noexcept {
    const std::uint16_t allowed = load_be<std::uint16_t>(&r.cdb[3]);
    const bool vital_product_data = (r.cdb[1] & 1) != 0;
    const std::uint8_t page = r.cdb[2];
    if (!vital_product_data) return page == 0 ? answer(r, standard, allowed) : bad_field();
    if (page == 0x00) {
      const std::array<unsigned char, 6> pages = {type_, 0x00, 0, 2, 0x00, 0x83};
      return answer(r, pages, allowed);
    }
    if (page != 0x83) return bad_field();
    std::array<unsigned char, 64> data = {type_, 0x83, 0,
                                          static_cast<unsigned char>(designator.size())};
    std::copy(designator.begin(), designator.end(), data.begin() + 4);
    return answer(r, std::span(data).first(4 + designator.size()), allowed);
  }

  [[nodiscard]] scsi_reply read_capacity(const scsi_request& r, std::uint64_t blocks) noexcept {
    std::array<unsigned char, 8> data{};
    const std::uint64_t last = blocks - 1;
    store_be(data.data(), static_cast<std::uint32_t>(std::min<std::uint64_t>(last, 0xFFFFFFFFu)));
    store_be(data.data() + 4, block_);
    return answer(r, data, data.size());
  }

  // Checked without an addition or product that could wrap.
  [[nodiscard]] scsi_reply move_blocks(const scsi_request& r, disk_image& image,
                                       bool writes) noexcept {
    const block_range range = range_of(r.cdb);
    const std::uint64_t blocks = image.sector_count() / (block_ / sector_size);
    const data_buffer data =
        buffer_for(r, writes ? data_direction::to_device : data_direction::from_device);
    if (range.count == 0 || range.first >= blocks || range.count > blocks - range.first) {
      return out_of_range();
    }
    if (range.count > size_of(data) / block_) return out_of_range();
    if (writes && image.read_only()) return fail(srb_status::error, 0x07, 0x27, 0x00);

    const bool bad = damaged.count != 0 && range.first < damaged.first + damaged.count &&
                     damaged.first < range.first + range.count;
    const std::uint64_t bytes = range.count * block_;
    ++(writes ? counters.writes : counters.reads);
    const bool moved = !bad && (writes ? image.write(range.first * block_, data, bytes)
                                       : image.read(range.first * block_, data, bytes));
    if (!moved) return fail(srb_status::error, 0x03, writes ? 0x03 : 0x11, 0x00);
    const bool force_unit_access = writes && (r.cdb[1] & 0x08) != 0;
    if (force_unit_access && !image.flush()) return fail(srb_status::error, 0x03, 0x03, 0x00);
    return good(bytes);
  }

private:
  const std::uint8_t type_;
  const std::uint32_t block_;
  const std::uint8_t bad_request_;
  sense_data last_sense_ = make_sense(0, 0, 0);
};

}  // namespace detail

namespace {

// ---- Disk ------------------------------------------------------------------

class disk final : public detail::scsi_unit {
public:
  disk(scsi_address at, std::shared_ptr<disk_image> image) noexcept
      : scsi_unit(0x00, sector_size, srb_status::invalid_request),
        at_(at),
        image_(std::move(image)) {}

  scsi_reply execute(const scsi_request& r) noexcept override {
    const std::uint8_t code = r.cdb[0];
    const bool asks_about_unit = code == opcode::inquiry || code == opcode::request_sense;
    if (!asks_about_unit && std::exchange(capacity_changed_, false)) {
      return fail(srb_status::error, 0x06, 0x2A, 0x09);
    }
    switch (code) {
      case opcode::test_unit_ready:
      case opcode::prevent_allow: return good();
      case opcode::request_sense: return request_sense(r);
      case opcode::inquiry: return identify(r);
      case opcode::mode_sense_6:
      case opcode::mode_sense_10: return mode_sense(r);
      case opcode::start_stop_unit:
        if ((r.cdb[1] & 1) != 0) return bad_field();
        return (r.cdb[4] & 1) != 0 ? good() : flush();
      case opcode::read_capacity_10: return read_capacity(r, image_->sector_count());
      case opcode::service_action_in:
        if ((r.cdb[1] & 0x1F) != read_capacity_16_action) return bad_field();
        return read_capacity_16(r);
      case opcode::read_10:
      case opcode::read_16: return move_blocks(r, *image_, false);
      case opcode::write_10:
      case opcode::write_16: return move_blocks(r, *image_, true);
      case opcode::synchronize_cache_10:
      case opcode::synchronize_cache_16: return flush();
      default: return unknown_opcode();
    }
  }

  bool report_capacity_change() override { return capacity_changed_ = true; }

private:
  scsi_reply overrun() noexcept override { return fail(srb_status::data_overrun, 0x05, 0x24, 0); }

  scsi_reply flush() noexcept {
    ++counters.flushes;
    return image_->flush() ? good() : fail(srb_status::error, 0x03, 0x03, 0x00);
  }

  scsi_reply identify(const scsi_request& r) noexcept {
    std::array<unsigned char, 104> standard = {0x00, 0x00, 0x05, 0x02, 0x63, 0x00, 0x00, 0x02};
    std::memcpy(standard.data() + 8, "Msft    Virtual Disk    1.0 ", 28);
    const std::array<unsigned char, 20> designator = {
        0x01, 0x03, 0x00, 0x10, 0x60, 0x02, 0x24, 0x80,     'p',        'm',
        'g',  'a',  't',  'e',  0,    0,    0,    at_.path, at_.target, at_.lun};
    return inquiry(r, standard, designator);
  }

  scsi_reply read_capacity_16(const scsi_request& r) noexcept {
    constexpr std::uint64_t least = 12;  // the address and the block size
    const std::uint64_t room = size_of(buffer_for(r, data_direction::from_device));
    if (room < least) return overrun();
    std::array<unsigned char, 32> data{};
    store_be(data.data(), image_->sector_count() - 1);
    store_be(data.data() + 8, sector_size);
    return answer(r, data, std::min<std::uint64_t>(room, load_be<std::uint32_t>(&r.cdb[10])));
  }

  // Header, then the caching page; its values are the same whatever is asked,
  // but none of them can be changed.
  scsi_reply mode_sense(const scsi_request& r) noexcept {
    const std::uint8_t page = r.cdb[2] & 0x3F;
    const std::uint8_t control = r.cdb[2] >> 6;
    if ((page != 0x08 && page != 0x3F) || control == 3) return bad_field();
    const bool changeable = control == 1;
    const auto device_specific =
        static_cast<unsigned char>(0x10 | (image_->read_only() ? 0x80 : 0x00));
    const bool wide = r.cdb[0] == opcode::mode_sense_10;
    const std::size_t header = wide ? 8 : 4;
    std::array<unsigned char, 20> data{};
    data[wide ? 1 : 0] = wide ? 18 : 15;
    data[wide ? 3 : 2] = device_specific;
    data[header] = 0x08;
    data[header + 1] = 0x0A;
    data[header + 2] = changeable ? 0x00 : 0x04;  // write cache on
    return answer(r, std::span(data).first(header + 12),
                  wide ? load_be<std::uint16_t>(&r.cdb[7]) : r.cdb[4]);
  }

  const scsi_address at_;
  const std::shared_ptr<disk_image> image_;
  bool capacity_changed_ = false;
};

// ---- Optical drive ---------------------------------------------------------

class optical_drive final : public detail::scsi_unit {
public:
  explicit optical_drive(std::shared_ptr<disk_image> medium) noexcept
      : scsi_unit(0x05, drive_block_size, srb_status::error) {
    if (medium != nullptr) {
      note(removal);
      load(std::move(medium));
    }
  }

  scsi_reply execute(const scsi_request& r) noexcept override {
    switch (r.cdb[0]) {
      case opcode::test_unit_ready: return present() ? good() : no_medium();
      case opcode::request_sense: return request_sense(r);
      case opcode::inquiry: return identify(r);
      case opcode::start_stop_unit: return start_stop(r);
      case opcode::prevent_allow: prevented_ = (r.cdb[4] & 1) != 0; return good();
      case opcode::read_capacity_10:
        return present() ? read_capacity(r, medium_->sector_count() / sectors) : no_medium();
      case opcode::read_10:
      case opcode::read_16: return present() ? move_blocks(r, *medium_, false) : no_medium();
      case opcode::get_event_status: return event_status(r);
      case opcode::mode_sense_6:
      case opcode::mode_sense_10: return bad_field();  // there is no page to tell of
      default: return unknown_opcode();
    }
  }

  bool insert(std::shared_ptr<disk_image> medium) override {
    if (medium == nullptr || medium->sector_count() < sectors) return false;
    if (present()) note(removal);
    load(std::move(medium));
    return true;
  }

  bool eject() override {
    if (prevented_ && present()) {
      note(request);
      return false;
    }
    if (present()) note(removal);
    medium_ = nullptr;
    tray_open_ = true;
    return true;
  }

private:
  static constexpr std::uint32_t sectors = drive_block_size / sector_size;
  enum event : std::uint8_t { none = 0, request = 1, new_medium = 2, removal = 3 };

  [[nodiscard]] bool present() const noexcept { return medium_ != nullptr && !tray_open_; }

  void load(std::shared_ptr<disk_image> medium) {
    medium_ = std::move(medium);
    tray_open_ = false;
    note(new_medium);
  }
  void note(event what) {
    constexpr std::size_t most = 8;  // a guest that plays with the tray gets no more of our memory
    if (events_.size() == most) events_.pop_front();
    events_.push_back(what);
  }

  scsi_reply overrun() noexcept override {
    return check_condition_without_sense(srb_status::data_overrun);
  }
  scsi_reply no_medium() noexcept {
    return fail(srb_status::error, 0x02, 0x3A, tray_open_ ? 0x02 : 0x01);
  }

  scsi_reply identify(const scsi_request& r) noexcept {
    std::array<unsigned char, 36> standard = {0x05, 0x80, 0x00, 0x02, 0x1F, 0x00, 0x00, 0x00};
    std::memcpy(standard.data() + 8, "Msft    Virtual DVD-ROM 1.0 ", 28);
    std::array<unsigned char, 28> designator = {0x01, 0x01, 0x00, 24};
    std::memcpy(designator.data() + 4, "Msft    pmgate DVD-ROM  ", 24);
    return inquiry(r, standard, designator);
  }

  // The tray keeps its medium: opened and closed again, it is there again.
  scsi_reply start_stop(const scsi_request& r) noexcept {
    const bool load_or_eject = (r.cdb[4] & 2) != 0;
    const bool start = (r.cdb[4] & 1) != 0;
    if (!load_or_eject) return good();
    if (start) {
      if (std::exchange(tray_open_, false) && medium_ != nullptr) note(new_medium);
      return good();
    }
    if (prevented_) return fail(srb_status::error, present() ? 0x05 : 0x02, 0x53, 0x02);
    if (present()) note(removal);
    tray_open_ = true;
    return good();
  }

  // An event tells of the moment it happened, so a removal says "open" even if
  // something else is in the drive by now.
  scsi_reply event_status(const scsi_request& r) noexcept {
    constexpr std::uint8_t media_class = 0x10;  // in the mask; its number is 4
    if ((r.cdb[1] & 1) == 0) return bad_field();
    ++counters.event_polls;
    const std::uint16_t allowed = load_be<std::uint16_t>(&r.cdb[7]);
    if ((r.cdb[4] & media_class) == 0) {
      const std::array<unsigned char, 4> header = {0x00, 0x02, 0x00, 0x7E};
      return answer(r, header, allowed);
    }
    const event next = events_.empty() ? none : events_.front();
    unsigned char state = static_cast<unsigned char>((tray_open_ ? 1 : 0) | (present() ? 2 : 0));
    if (next == removal) state = 1;
    if (next == new_medium) state = 2;
    const std::array<unsigned char, 8> data = {0x00, 0x06, 0x04, 0x7E, next, state, 0x00, 0x00};
    const scsi_reply reply = answer(r, data, allowed);
    constexpr std::uint32_t with_event = 5;  // cut shorter, it has not been told
    if (next != none && reply.transferred >= with_event) events_.pop_front();
    return reply;
  }

  std::shared_ptr<disk_image> medium_;
  bool tray_open_ = false;
  bool prevented_ = false;
  std::deque<event> events_;
};

}  // namespace

// ---- The controller --------------------------------------------------------

scsi_target::scsi_target() = default;
scsi_target::~scsi_target() = default;

detail::scsi_unit* scsi_target::find(scsi_address at) const noexcept {
  const auto found = units_.find(at);
  return found == units_.end() ? nullptr : found->second.get();
}

bool scsi_target::attach_disk(scsi_address at, std::shared_ptr<disk_image> image) {
  if (image == nullptr || image->sector_count() == 0) return false;
  const std::lock_guard lock(mutex_);
  if (find(at) != nullptr) return false;
  units_[at] = std::make_unique<disk>(at, std::move(image));
  return true;
}

bool scsi_target::attach_drive(scsi_address at, std::shared_ptr<disk_image> medium) {
  if (medium != nullptr && medium->sector_count() < drive_block_size / sector_size) return false;
  const std::lock_guard lock(mutex_);
  if (find(at) != nullptr) return false;
  units_[at] = std::make_unique<optical_drive>(std::move(medium));
  return true;
}

bool scsi_target::detach(scsi_address at) {
  const std::lock_guard lock(mutex_);
  return units_.erase(at) != 0;
}

// Does something to a unit; false if there is none.
template <class Change>
bool scsi_target::change(scsi_address at, Change what) {
  const std::lock_guard lock(mutex_);
  detail::scsi_unit* const unit = find(at);
  return unit != nullptr && what(*unit);
}

bool scsi_target::insert(scsi_address at, std::shared_ptr<disk_image> medium) {
  return change(at, [&](auto& unit) { return unit.insert(std::move(medium)); });
}
bool scsi_target::eject(scsi_address at) {
  return change(at, [](auto& unit) { return unit.eject(); });
}
bool scsi_target::report_capacity_change(scsi_address at) {
  return change(at, [](auto& unit) { return unit.report_capacity_change(); });
}
bool scsi_target::damage_blocks(scsi_address at, std::uint64_t first, std::uint64_t count) {
  if (first > ~std::uint64_t{0} - count) return false;
  return change(at, [=](auto& unit) {
    unit.damaged = {first, count};
    return true;
  });
}

scsi_counters scsi_target::counters(scsi_address at) const {
  const std::lock_guard lock(mutex_);
  const detail::scsi_unit* const unit = find(at);
  return unit == nullptr ? scsi_counters{} : unit->counters;
}

scsi_reply scsi_target::report_luns(const scsi_request& r) const noexcept {
  constexpr std::size_t entry = 8;
  std::vector<unsigned char> data(entry);
  for (const auto& [at, unit] : units_) {  // ascending, as the map is
    if (at.path != r.at.path || at.target != r.at.target) continue;
    data.resize(data.size() + entry);
    store_be(data.data() + data.size() - entry, std::uint16_t{at.lun});
  }
  store_be(data.data(), static_cast<std::uint32_t>(data.size() - entry));
  const data_buffer to = buffer_for(r, data_direction::from_device);
  const std::size_t count = std::min<std::size_t>(data.size(), load_be<std::uint32_t>(&r.cdb[6]));
  if (size_of(to) < count) return check_condition(srb_status::data_overrun, bad_cdb_field);
  scatter(to, std::span(data).first(count));
  return good(count);
}

scsi_reply scsi_target::execute(const scsi_request& request) noexcept {
  const std::lock_guard lock(mutex_);
  if (request.cdb[0] == opcode::report_luns) return report_luns(request);
  if (detail::scsi_unit* const unit = find(request.at); unit != nullptr) {
    return unit->execute(request);
  }
  if (request.cdb[0] != opcode::inquiry) {
    return check_condition_without_sense(srb_status::invalid_lun);
  }
  const bool standard_page = (request.cdb[1] & 1) == 0 && request.cdb[2] == 0;
  if (!standard_page) return check_condition(srb_status::invalid_request, bad_cdb_field);
  std::array<unsigned char, 36> nothing_here = {0x7F, 0x00, 0x05, 0x02, 0x1F};
  const data_buffer to = buffer_for(request, data_direction::from_device);
  const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(
      {nothing_here.size(), load_be<std::uint16_t>(&request.cdb[3]), size_of(to)}));
  scatter(to, std::span(nothing_here).first(count));
  return good(count);
}

}  // namespace storvsc
