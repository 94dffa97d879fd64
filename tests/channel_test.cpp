// SPDX-License-Identifier: MIT
//
// channel_test.cpp - the life of a channel: opened, used, closed, withdrawn,
// resumed, with a host that answers, refuses, falls silent or comes late.
//
// The numbers are those of the scenarios that the channel was specified by.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform.hpp>
#include <pmgate/vmbus/channel.hpp>

namespace {

using namespace pmgate::vmbus;
using pmgate::status;
using platform = pmgate::default_platform;
using word = control_word;
using bytes = std::vector<unsigned char>;

static_assert(!std::is_copy_constructible_v<channel>);
static_assert(!std::is_move_constructible_v<channel>);
static_assert(noexcept(std::declval<channel&>().write(packet{})));
static_assert(noexcept(std::declval<channel&>().close()));

int misuses = 0;
void count_misuse(const char*) noexcept { ++misuses; }

// Two rings as a guest would allocate them.
struct pages {
  std::vector<std::uint64_t> words;
  std::vector<std::uint64_t> pfns;
  std::uint32_t data;

  explicit pages(std::uint32_t data_size = 4096, unsigned char fill = 0xAA)
      : words((2 * (control_page_size + data_size)) / 8, 0x0101010101010101u * fill),
        pfns(2 + 2 * data_size / page_size),
        data(data_size) {
    for (std::size_t i = 0; i < pfns.size(); ++i) pfns[i] = 0x1000 + i;
  }
  flat_memory ring(std::uint32_t which) {
    auto* const start =
        reinterpret_cast<unsigned char*>(words.data()) + which * (control_page_size + data);
    return {start, start + control_page_size, data};
  }
};

// A host that does what the test says. It answers from inside send().
struct fake_host {
  channel* guest = nullptr;
  pages* shared = nullptr;
  std::vector<control_message> log;
  std::vector<std::uint32_t> tickets;
  std::atomic<int> signals{0};  // told under one lock or the other
  std::uint32_t handle = first_gpadl;

  std::uint32_t created_result = 0;
  std::uint32_t open_result = 0;
  std::function<void()> on_signal = [] {};
  message_type silent_on = message_type::invalid;   // this message gets no answer
  message_type rescind_on = message_type::invalid;  // this one is answered by a rescind
  message_type fail_on = message_type::invalid;     // this one cannot be sent

  ring_consumer<flat_memory> requests;
  ring_producer<flat_memory> replies;
  bytes buffer = bytes(4096);
  received_packet got{};

  channel_transport transport() {
    channel_transport t;
    t.context = this;
    t.send = [](void* self, const control_message& m) noexcept {
      return static_cast<fake_host*>(self)->take_message(m);
    };
    t.signal = [](void* self, std::uint32_t connection) noexcept {
      CHECK(connection == 0x10002);
      ++static_cast<fake_host*>(self)->signals;
      static_cast<fake_host*>(self)->on_signal();
    };
    t.schedule = [](void* self, std::uint32_t ticket) noexcept {
      static_cast<fake_host*>(self)->tickets.push_back(ticket);
    };
    t.next_gpadl = [](void* self) noexcept { return static_cast<fake_host*>(self)->handle++; };
    return t;
  }

  status take_message(const control_message& m) {
    const message_type type = m.type();
    if (type == fail_on) return status::io_error;
    log.push_back(m);
    if (type == rescind_on) {
      rescind();
    } else if (type != silent_on) {
      answer(m);
    }
    return status::ok;
  }
  void answer(const control_message& m) {
    if (m.type() == message_type::gpadl_header && shared->pfns.size() > header_pfn_limit) return;
    if (m.type() == message_type::gpadl_body && !last_body()) return;
    if (m.type() == message_type::gpadl_header || m.type() == message_type::gpadl_body) {
      tell(control_message(message_type::gpadl_created)
               .set(field::relid, std::uint32_t{11})
               .set(field::gpadl, m.get(field::gpadl))
               .set(field::result, created_result));
    }
    if (m.type() == message_type::open) open(m);
    if (m.type() == message_type::gpadl_teardown) torndown(m.get(field::gpadl));
  }
  bool last_body() const {
    std::size_t pfns = header_pfn_limit;
    for (const auto& m : log) {
      if (m.type() == message_type::gpadl_body) pfns += (m.size - field::body_pfns) / 8;
    }
    return pfns == shared->pfns.size();
  }
  void open(const control_message& m) {
    REQUIRE(requests.attach(shared->ring(0), {host_accepts, 0}) == status::ok);
    REQUIRE(replies.attach(shared->ring(1)) == status::ok);
    replies.announce_pending_send();
    tell(control_message(message_type::open_result)
             .set(field::relid, m.get(field::relid))
             .set(field::open_id, m.get(field::open_id))
             .set(field::result, open_result));
  }
  status torndown(std::uint32_t gpadl) {
    return tell(control_message(message_type::gpadl_torndown).set(field::torndown_gpadl, gpadl));
  }
  status rescind() {
    return tell(control_message(message_type::rescind).set(field::relid, std::uint32_t{11}));
  }
  status tell(const control_message& m) { return guest->on_message(m.bytes, m.size); }

  std::vector<message_type> said() const {
    std::vector<message_type> out;
    for (const auto& m : log) out.push_back(m.type());
    return out;
  }
  // The next request, given back at once.
  status serve() { return requests.read(buffer.data(), 4096, got).code; }
  bool complete(std::uint64_t id) {
    packet p;
    p.type = packet_type::completion;
    p.trans_id = id;
    const ring_result done = replies.write(p);
    REQUIRE(done.code == status::ok);
    return done.signal;
  }
};

channel_offer offer_11() {
  channel_offer offer;
  offer.relid = 11;
  offer.connection_id = 0x10002;
  return offer;
}

// A channel with its host. Nothing is open yet.
struct rig {
  fake_host host;
  pages memory;
  request_slot slots[4];
  bytes buffer = bytes(4096);
  channel guest;
  std::vector<std::uint64_t> received;
  std::function<void()> in_callback = [] {};
  received_packet got{};

  // Only hosts that never answer let the channel wait for as long as `patience`.
  explicit rig(std::uint32_t data_size = 4096, int patience = 20)
      : memory(data_size), guest(host.transport(), offer_11(), platform::milliseconds(patience)) {
    host.guest = &guest;
    host.shared = &memory;
    misuses = 0;
    pmgate::set_misuse_handler(count_misuse);
  }
  ~rig() {
    if (guest.state() == channel_state::open) static_cast<void>(guest.close());
    pmgate::set_misuse_handler(nullptr);
  }
  channel::setup setup() {
    channel::setup s;
    s.outbound = memory.ring(0);
    s.inbound = memory.ring(1);
    s.pfns = memory.pfns.data();
    s.pfn_count = static_cast<std::uint32_t>(memory.pfns.size());
    s.callback = [](void* self) noexcept { static_cast<rig*>(self)->drain(); };
    s.callback_context = this;
    s.buffer = buffer.data();
    s.buffer_size = static_cast<std::uint32_t>(buffer.size());
    s.requests = slots;
    s.request_count = 4;
    return s;
  }
  void drain() {
    in_callback();
    received_packet p;
    while (guest.receive(p) == status::ok) received.push_back(p.trans_id);
  }
  // Runs what was scheduled, once.
  void run_scheduled() {
    const auto tickets = std::exchange(host.tickets, {});
    for (const std::uint32_t ticket : tickets) guest.run_deferred(ticket);
  }
  write_result write(std::uint64_t cookie = 0xC0) {
    packet p;
    p.flags = flag_completion_requested;
    p.trans_id = cookie;
    return guest.write(p);
  }
  std::uint32_t word_of(std::uint32_t ring, word w) {
    return memory.ring(ring).load(w, std::memory_order_relaxed);
  }
};

struct open_rig : rig {
  open_rig() { REQUIRE(guest.open(setup()) == status::ok); }
};

const std::vector<message_type> open_and_closed = {message_type::gpadl_header, message_type::open,
                                                   message_type::close,
                                                   message_type::gpadl_teardown};

}  // namespace

TEST_SUITE("channel") {

// ---- Opening ---------------------------------------------------------------

TEST_CASE("rings of 128 KiB are shared by one header and two bodies, then opened") {
  rig r(126976);
  const unsigned char hello[3] = {1, 2, 3};
  auto s = r.setup();
  s.userdata = hello;
  s.userdata_size = 3;
  s.target_vp = 5;

  REQUIRE(r.guest.open(s) == status::ok);

  REQUIRE(r.host.said() == std::vector<message_type>{message_type::gpadl_header,
                                                     message_type::gpadl_body,
                                                     message_type::gpadl_body, message_type::open});
  const control_message& header = r.host.log[0];
  CHECK(header.get(field::relid) == 11);
  CHECK(header.get(field::gpadl) == 0xE1E10);
  CHECK(header.get<std::uint16_t>(field::gpadl_range_length) == 520);
  CHECK(header.get<std::uint16_t>(field::gpadl_range_count) == 1);
  CHECK(header.get(field::gpadl_byte_count) == 64 * 4096);
  CHECK(header.get<std::uint64_t>(field::header_pfns) == 0x1000);
  CHECK(header.size == 28 + 26 * 8);
  CHECK(r.host.log[1].size == 240);
  CHECK(r.host.log[1].get<std::uint64_t>(field::body_pfns) == 0x1000 + 26);
  CHECK(r.host.log[2].size == 16 + 10 * 8);
  const control_message& open = r.host.log[3];
  CHECK(open.get(field::open_gpadl) == 0xE1E10);
  CHECK(open.get(field::open_second_ring) == 32);
  CHECK(open.get(field::open_target_vp) == 5);
  CHECK(open.bytes[field::open_userdata + 2] == 3);
  CHECK(r.guest.state() == channel_state::open);
  CHECK(r.guest.percent_free() == 96);
}

TEST_CASE_FIXTURE(open_rig,
                  "both rings are empty when the host sees them, one announces its feature") {
  CHECK(word_of(0, word::write_index) == 0);
  CHECK(word_of(0, word::read_index) == 0);
  CHECK(word_of(0, word::interrupt_mask) == 0);
  CHECK(word_of(0, word::feature_bits) == 1);
  CHECK(word_of(1, word::write_index) == 0);
  CHECK(memory.words[4095 / 8] == 0);
}

TEST_CASE_FIXTURE(rig, "a setup that cannot be is refused and the host hears nothing") {
  auto s = setup();
  s.userdata_size = 121;
  CHECK(guest.open(s) == status::invalid);
  s = setup();
  s.pfn_count -= 1;
  CHECK(guest.open(s) == status::invalid);
  s = setup();
  s.buffer_size = 4095;
  CHECK(guest.open(s) == status::invalid);
  s = setup();
  s.inbound = flat_memory(memory.words.data(), memory.words.data(), 4000);
  CHECK(guest.open(s) == status::invalid);
  s = setup();
  s.requests = nullptr;
  CHECK(guest.open(s) == status::invalid);
  CHECK(host.log.empty());
}

TEST_CASE_FIXTURE(open_rig, "an open channel cannot be opened again") {
  CHECK(guest.open(setup()) == status::invalid);
  CHECK(guest.state() == channel_state::open);
}

TEST_CASE_FIXTURE(rig, "a host that refuses the pages does not hold them") {
  host.created_result = 1;

  CHECK(guest.open(setup()) == status::quota);
  CHECK(guest.state() == channel_state::closed);
  CHECK(guest.pages_released());
}

TEST_CASE_FIXTURE(rig, "ring 44: a refused open takes the pages back, and a second one succeeds") {
  host.open_result = 1;

  CHECK(guest.open(setup()) == status::again);
  CHECK(host.said().back() == message_type::gpadl_teardown);
  CHECK(guest.state() == channel_state::closed);
  CHECK(guest.pages_released());
  CHECK(write().code == status::no_device);

  host.open_result = 0;
  CHECK(guest.open(setup()) == status::ok);
  CHECK(host.log.back().get(field::open_gpadl) == first_gpadl + 1);
}

TEST_CASE_FIXTURE(rig, "a host that never takes the pages keeps them, as far as is known") {
  host.silent_on = message_type::gpadl_header;

  CHECK(guest.open(setup()) == status::timed_out);
  CHECK(guest.state() == channel_state::closed);
  CHECK_FALSE(guest.pages_released());
}

TEST_CASE_FIXTURE(rig,
                  "a host that never answers the open is told to close, and gives the pages back") {
  host.silent_on = message_type::open;

  CHECK(guest.open(setup()) == status::timed_out);
  CHECK(host.said() == open_and_closed);
  CHECK(guest.pages_released());
}

TEST_CASE_FIXTURE(rig, "an answer that comes too late opens nothing") {
  host.silent_on = message_type::open;
  REQUIRE(guest.open(setup()) == status::timed_out);

  CHECK(host.tell(control_message(message_type::open_result)
                      .set(field::relid, std::uint32_t{11})
                      .set(field::open_id, std::uint32_t{11})) == status::invalid);
  CHECK(guest.state() == channel_state::closed);
}

TEST_CASE_FIXTURE(rig, "ring 38: a rescind ends either wait of an open") {
  host.rescind_on = message_type::gpadl_header;
  CHECK(guest.open(setup()) == status::no_device);
  CHECK(guest.pages_released());

  REQUIRE(guest.rebind(offer_11()) == status::ok);
  host.rescind_on = message_type::open;
  CHECK(guest.open(setup()) == status::no_device);
  CHECK(guest.pages_released());
  CHECK(guest.state() == channel_state::closed);
}

TEST_CASE_FIXTURE(rig, "a message that cannot be sent fails the open with the transport's word") {
  host.fail_on = message_type::gpadl_header;
  CHECK(guest.open(setup()) == status::io_error);
  CHECK(guest.pages_released());
  host.fail_on = message_type::open;
  CHECK(guest.open(setup()) == status::io_error);
  CHECK(guest.pages_released());
}

// ---- Writing and reading ---------------------------------------------------

TEST_CASE_FIXTURE(open_rig,
                  "ring 22: requests get the IDs 1 to 4, and a fifth waits for one of them") {
  CHECK(write(0xA0).trans_id == 1);
  CHECK(write(0xA1).trans_id == 2);
  CHECK(write(0xA2).trans_id == 3);
  CHECK(write(0xA3).trans_id == 4);
  const std::uint32_t before = word_of(0, word::write_index);

  CHECK(write(0xA4).code == status::again);
  CHECK(word_of(0, word::write_index) == before);
  CHECK(host.signals == 1);

  CHECK(guest.lookup(3).cookie == 0xA2);
  CHECK(write(0xA5).trans_id == 3);
}

TEST_CASE_FIXTURE(open_rig, "ring 24: the ID that write() returns is the one the host has read") {
  const write_result sent = write(0xA0);
  REQUIRE(host.serve() == status::ok);
  CHECK(host.got.trans_id == sent.trans_id);
}

TEST_CASE_FIXTURE(open_rig,
                  "a packet that asks for no completion carries its cookie and takes no ID") {
  packet p;
  p.trans_id = 0x1234567;
  CHECK(guest.write(p).trans_id == 0x1234567);
  CHECK(write(0xA0).trans_id == 1);
}

TEST_CASE_FIXTURE(rig, "a driver's own mapping replaces the table") {
  auto s = setup();
  s.map_request_id = [](void*, std::uint64_t cookie, std::uint64_t& id) noexcept {
    id = cookie + 1;
    return cookie != 9;
  };
  REQUIRE(guest.open(s) == status::ok);

  CHECK(write(0x30005).trans_id == 0x30006);
  CHECK(write(9).code == status::again);
}

TEST_CASE_FIXTURE(open_rig, "a full ring refuses a packet without keeping an ID for it") {
  const bytes large(4064 - 16);
  packet p;
  p.payload = large.data();
  p.payload_size = static_cast<std::uint32_t>(large.size());
  REQUIRE(guest.write(p).code == status::ok);

  CHECK(write(0xA0).code == status::again);

  REQUIRE(host.serve() == status::ok);
  CHECK(write(0xA0).trans_id == 1);
}

TEST_CASE_FIXTURE(open_rig, "a host whose indices lie costs the request its ID") {
  memory.ring(0).store(word::read_index, 4, std::memory_order_relaxed);

  CHECK(write(0xA0).code == status::io_error);
  CHECK(guest.lookup(1).match == request_match::unknown);
  CHECK(guest.fault() == ring_fault::index_range);
}

TEST_CASE_FIXTURE(open_rig, "room given back signals a host that waits for it") {
  while (host.replies.put(packet{packet_type::completion}) == status::ok) {
  }
  REQUIRE(host.replies.flush().signal);
  REQUIRE(host.replies.request_space(24) == status::again);
  received_packet p;
  REQUIRE(guest.receive(p) == status::ok);
  host.signals = 0;

  CHECK(guest.commit() == status::ok);

  CHECK(host.signals == 1);
}

// ---- The callback ----------------------------------------------------------

TEST_CASE_FIXTURE(open_rig,
                  "a batched callback drains with signals masked, and unmasks behind itself") {
  std::uint32_t mask_inside = 0;
  in_callback = [&] { mask_inside = word_of(1, word::interrupt_mask); };
  REQUIRE(host.complete(7));

  guest.interrupt();
  CHECK(word_of(1, word::interrupt_mask) == 1);
  CHECK(received.empty());
  CHECK_FALSE(host.complete(8));
  run_scheduled();

  CHECK(mask_inside == 1);
  CHECK(received == std::vector<std::uint64_t>{7, 8});
  CHECK(word_of(1, word::interrupt_mask) == 0);
  CHECK(word_of(1, word::read_index) == 48);
  CHECK(host.tickets.empty());
}

TEST_CASE_FIXTURE(
    rig, "ring 35: a host that never stops sending is served by the budget, again and again") {
  auto s = setup();
  s.budget = 2;
  REQUIRE(guest.open(s) == status::ok);
  in_callback = [&] { host.complete(1); };
  host.complete(1);
  host.complete(1);
  guest.interrupt();

  run_scheduled();
  CHECK(received.size() == 2);
  CHECK(host.tickets.size() == 1);
  CHECK(word_of(1, word::read_index) == 48);
  CHECK(word_of(1, word::interrupt_mask) == 1);

  run_scheduled();
  CHECK(received.size() == 4);
  CHECK(host.tickets.empty());
}

TEST_CASE_FIXTURE(rig, "a direct callback runs without masking") {
  auto s = setup();
  s.mode = callback_mode::direct;
  REQUIRE(guest.open(s) == status::ok);
  host.complete(7);

  guest.interrupt();
  CHECK(word_of(1, word::interrupt_mask) == 0);
  run_scheduled();

  CHECK(received.size() == 1);
  CHECK(word_of(1, word::read_index) == 24);
}

TEST_CASE_FIXTURE(rig, "a callback in isr mode runs inside the interrupt and masks for itself") {
  auto s = setup();
  s.mode = callback_mode::isr;
  REQUIRE(guest.open(s) == status::ok);
  in_callback = [&] { guest.begin_read(); };
  host.complete(7);

  guest.interrupt();

  CHECK(received.size() == 1);
  CHECK(host.tickets.empty());
  CHECK(word_of(1, word::interrupt_mask) == 1);
  CHECK(guest.end_read().bytes == 0);
  CHECK(word_of(1, word::interrupt_mask) == 0);
}

TEST_CASE_FIXTURE(open_rig, "a spurious interrupt runs the callback and finds nothing") {
  guest.interrupt();
  run_scheduled();
  CHECK(received.empty());
  CHECK(word_of(1, word::interrupt_mask) == 0);
}

TEST_CASE_FIXTURE(open_rig, "a corrupt inbound ring stops the callback and names the lie") {
  memory.ring(1).store(word::write_index, 4, std::memory_order_relaxed);
  guest.interrupt();

  run_scheduled();

  CHECK(host.tickets.empty());
  CHECK(guest.receive(got) == status::io_error);
  CHECK(guest.fault() == ring_fault::index_range);
}

TEST_CASE_FIXTURE(open_rig, "a channel is not closed from its own callback") {
  status inside = status::ok;
  in_callback = [&] { inside = guest.close(); };
  guest.interrupt();

  run_scheduled();

  CHECK(inside == status::deadlock);
  CHECK(misuses == 1);
  CHECK(guest.state() == channel_state::open);
}

TEST_CASE_FIXTURE(open_rig,
                  "ring 39: close waits for the running callback, which is never entered again") {
  std::atomic<bool> entered{false}, leave{false};
  std::atomic<int> entries{0};
  in_callback = [&] {
    ++entries;
    entered = true;
    while (!leave) std::this_thread::yield();
  };
  guest.interrupt();
  std::thread deferred([&] { run_scheduled(); });
  while (!entered) std::this_thread::yield();

  std::atomic<bool> closed{false};
  std::thread closer([&] {
    CHECK(guest.close() == status::ok);
    closed = true;
  });
  while (guest.state() != channel_state::closing) std::this_thread::yield();
  CHECK_FALSE(closed.load());
  leave = true;
  deferred.join();
  closer.join();

  guest.interrupt();
  guest.run_deferred(0);
  CHECK(host.tickets.empty());
  CHECK(entries == 1);
}

TEST_CASE_FIXTURE(open_rig, "a deferred callback of an earlier life is dropped") {
  guest.interrupt();
  REQUIRE(guest.close() == status::ok);
  REQUIRE(guest.open(setup()) == status::ok);
  host.complete(7);

  run_scheduled();

  CHECK(received.empty());
  guest.interrupt();
  run_scheduled();
  CHECK(received.size() == 1);
}

// ---- Closing ---------------------------------------------------------------

TEST_CASE_FIXTURE(open_rig, "ring 40: close says CLOSE, then takes the pages back") {
  CHECK(guest.close() == status::ok);

  CHECK(host.said() == open_and_closed);
  CHECK(host.log[3].get(field::gpadl) == first_gpadl);
  CHECK(guest.pages_released());
  CHECK(guest.close() == status::invalid);
}

TEST_CASE("ring 40: the pages are not free before the host has let go of them") {
  rig r(4096, 10'000);
  REQUIRE(r.guest.open(r.setup()) == status::ok);
  r.host.silent_on = message_type::gpadl_teardown;
  bool free_early = true;
  std::thread late([&] {
    while (r.guest.state() != channel_state::closing) std::this_thread::yield();
    free_early = r.guest.pages_released();
    while (r.host.torndown(first_gpadl) != status::ok) std::this_thread::yield();
  });

  CHECK(r.guest.close() == status::ok);

  late.join();
  CHECK_FALSE(free_early);
  CHECK(r.guest.pages_released());
}

TEST_CASE_FIXTURE(open_rig, "a host that never lets go keeps the pages, until it does after all") {
  host.silent_on = message_type::gpadl_teardown;

  CHECK(guest.close() == status::timed_out);
  CHECK(guest.state() == channel_state::closed);
  CHECK_FALSE(guest.pages_released());

  CHECK(host.torndown(first_gpadl) == status::ok);
  CHECK(guest.pages_released());
  CHECK(host.torndown(first_gpadl) == status::invalid);
}

TEST_CASE_FIXTURE(open_rig, "a CLOSE that cannot be sent leaves the pages with the host") {
  host.fail_on = message_type::close;

  CHECK(guest.close() == status::io_error);
  CHECK_FALSE(guest.pages_released());
  CHECK(host.said().back() == message_type::open);
}

TEST_CASE("destroying an open channel is reported") {
  rig r;
  {
    channel guest(r.host.transport(), offer_11(), platform::milliseconds(20));
    r.host.guest = &guest;
    REQUIRE(guest.open(r.setup()) == status::ok);
  }
  CHECK(misuses == 1);
}

TEST_CASE_FIXTURE(open_rig, "ring 38: after a rescind writes fail and the callback rests") {
  CHECK(host.rescind() == status::ok);

  CHECK(guest.is_rescinded());
  CHECK(write().code == status::no_device);
  guest.interrupt();
  CHECK(host.tickets.empty());
  CHECK(guest.release_relid() == status::invalid);

  host.silent_on = message_type::gpadl_teardown;
  CHECK(guest.close() == status::ok);
  CHECK(guest.pages_released());
  CHECK(guest.release_relid() == status::ok);
  CHECK(host.said().back() == message_type::relid_released);
  CHECK(guest.open(setup()) == status::no_device);
}

TEST_CASE_FIXTURE(open_rig,
                  "ring 38: a rescind after the publish takes the ID back, not the packet") {
  host.on_signal = [&] { std::thread([&] { CHECK(host.rescind() == status::ok); }).join(); };

  CHECK(write(0xA0).code == status::no_device);

  CHECK(guest.lookup(1).match == request_match::unknown);
  CHECK(host.serve() == status::ok);
  CHECK(host.got.trans_id == 1);
}

TEST_CASE_FIXTURE(open_rig, "messages that are malformed, foreign or unasked for change nothing") {
  const control_message again(message_type::open_result);
  CHECK(guest.on_message(again.bytes, 4) == status::invalid);
  CHECK(host.tell(again) == status::no_device);
  CHECK(host.tell(control_message(message_type::rescind)) == status::no_device);
  CHECK(host.tell(control_message(message_type::offer)) == status::invalid);
  CHECK(host.tell(control_message(message_type::open_result)
                      .set(field::relid, std::uint32_t{11})
                      .set(field::open_id, std::uint32_t{11})) == status::invalid);
  CHECK(host.torndown(first_gpadl) == status::invalid);
  CHECK_FALSE(guest.pages_released());
  CHECK(write().code == status::ok);
}

// ---- Suspend and resume ----------------------------------------------------

TEST_CASE_FIXTURE(open_rig,
                  "ring 41: a suspended channel refuses writes, reads as empty, never crashes") {
  REQUIRE(guest.close() == status::ok);
  CHECK(guest.percent_free() == 0);
  memory.words.assign(memory.words.size(), ~std::uint64_t{0});

  CHECK(write().code == status::no_device);
  CHECK(guest.receive(got) == status::again);
  CHECK(guest.commit() == status::no_device);
  CHECK(guest.end_read().code == status::no_device);
  guest.begin_read();
  guest.interrupt();
  CHECK(guest.percent_free() == 0);
  CHECK(guest.fault() == ring_fault::detached);
  CHECK(memory.words == std::vector<std::uint64_t>(memory.words.size(), ~std::uint64_t{0}));
}

TEST_CASE_FIXTURE(open_rig, "ring 42: a resumed channel starts anew on other pages") {
  REQUIRE(write(0xA0).trans_id == 1);
  REQUIRE(guest.close() == status::ok);
  memory.words.assign(memory.words.size(), ~std::uint64_t{0});
  pages fresh(8192, 0xFF);
  std::swap(memory.words, fresh.words);
  std::swap(memory.pfns, fresh.pfns);
  std::swap(memory.data, fresh.data);

  REQUIRE(guest.open(setup()) == status::ok);

  CHECK(host.log.back().get(field::open_gpadl) == first_gpadl + 1);
  CHECK(word_of(0, word::write_index) == 0);
  CHECK(word_of(0, word::read_index) == 0);
  CHECK(write(0xB0).trans_id == 1);
  CHECK(host.serve() == status::ok);
  CHECK(guest.lookup(1).cookie == 0xB0);
  CHECK(fresh.words == std::vector<std::uint64_t>(fresh.words.size(), ~std::uint64_t{0}));
}

TEST_CASE_FIXTURE(open_rig, "ring 43: an ID of the previous life stands for nothing in the next") {
  REQUIRE(write(0xA0).trans_id == 1);
  const std::uint32_t life = guest.generation();
  REQUIRE(guest.close() == status::ok);
  CHECK(guest.lookup(1).match == request_match::unknown);
  REQUIRE(guest.open(setup()) == status::ok);

  host.complete(1);
  guest.interrupt();
  run_scheduled();

  CHECK(received == std::vector<std::uint64_t>{1});
  CHECK(guest.lookup(1).match == request_match::unknown);
  CHECK(guest.generation() != life);
}

TEST_CASE_FIXTURE(open_rig, "a resumed channel may have another name") {
  CHECK(guest.rebind(offer_11()) == status::busy);
  REQUIRE(guest.close() == status::ok);
  channel_offer other = offer_11();
  other.relid = 12;

  REQUIRE(guest.rebind(other) == status::ok);

  CHECK(guest.offer().relid == 12);
  host.fail_on = message_type::gpadl_header;
  CHECK(guest.open(setup()) == status::io_error);
  CHECK(host.rescind() == status::no_device);
}

// ---- Many threads ----------------------------------------------------------

namespace {

// A host that runs in its own thread and completes whatever it is asked.
struct busy_guest : rig {
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> sent{0}, completed{0}, wrong{0};

  void complete_all() {
    received_packet p;
    while (guest.receive(p) == status::ok) {
      if (guest.lookup(p.trans_id).match != request_match::released) ++wrong;
      ++completed;
    }
  }
  void serve_all() {
    while (host.serve() == status::ok) {
      if (host.complete(host.got.trans_id)) {
        guest.interrupt();
        run_scheduled();
      }
    }
  }
  void submit(std::uint64_t cookie) {
    packet p;
    p.flags = flag_completion_requested;
    p.trans_id = cookie;
    while (!stop) {
      const status code = guest.write(p).code;
      if (code == status::ok) ++sent;
      if (code == status::again) std::this_thread::yield();
    }
  }
};

}  // namespace

TEST_CASE("two writers and a host in threads of their own complete every request once") {
  busy_guest r;
  auto s = r.setup();
  s.callback = [](void* self) noexcept { static_cast<busy_guest*>(self)->complete_all(); };
  s.callback_context = static_cast<void*>(&r);
  std::atomic<bool> serving{true};
  std::thread writer_a([&] { r.submit(0xA0); });
  std::thread writer_b([&] { r.submit(0xB0); });
  REQUIRE(r.guest.open(s) == status::ok);
  std::thread host([&] {
    while (serving) {
      r.serve_all();
      std::this_thread::yield();
    }
  });

  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
  r.stop = true;
  writer_a.join();
  writer_b.join();
  while (r.completed < r.sent && std::chrono::steady_clock::now() < end + std::chrono::seconds(2)) {
    std::this_thread::yield();
  }
  serving = false;
  host.join();
  CHECK(r.guest.close() == status::ok);

  CHECK(r.sent > 0);
  CHECK(r.completed == r.sent);
  CHECK(r.wrong == 0);
}

TEST_CASE("a channel opened and closed under its writers refuses what it cannot send") {
  rig r;
  std::atomic<bool> stop{false};
  std::atomic<int> refused{0}, others{0};
  r.host.on_signal = [] {};
  const auto write_on = [&] {
    packet p;
    while (!stop) {
      const status code = r.guest.write(p).code;
      if (code == status::no_device) ++refused;
      if (code != status::no_device && code != status::ok && code != status::again) ++others;
      r.guest.interrupt();
      std::this_thread::yield();
    }
  };
  auto s = r.setup();
  s.mode = callback_mode::isr;
  s.callback = [](void*) noexcept {};
  std::thread writer_a(write_on);
  std::thread writer_b(write_on);

  for (int life = 0; life < 300; ++life) {
    REQUIRE(r.guest.open(s) == status::ok);
    REQUIRE(r.guest.close() == status::ok);
    std::fill(r.memory.words.begin(), r.memory.words.end(), ~std::uint64_t{0});
  }
  stop = true;
  writer_a.join();
  writer_b.join();
  CHECK(others == 0);
  CHECK(r.guest.generation() == 300);
}

}  // TEST_SUITE
