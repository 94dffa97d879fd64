// SPDX-License-Identifier: MIT
//
// scsi_submit.cpp - one command at a time through a SCSI device to its driver and back.
//
// Compiled twice: as it is, and with the gates compiled out (without_gates.hpp), then
// under other namespaces. Three drivers: the more of them does something, the less the
// gates weigh. Everything happens in one thread, the host's part too.
#include "scsi_submit.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include <benchmark/benchmark.h>

#include <pmgate/platform/linux_memory.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/vmbus/ring.hpp>

#include "storvsc/adapter.hpp"
#include "storvsc/host.hpp"

namespace storvsc {
namespace {

namespace scsi = pmgate::scsi;
using pmgate::vmbus::flat_memory;
using pmgate::vmbus::packet;
using pmgate::vmbus::packet_type;
using pmgate::vmbus::received_packet;

/// A benchmark that goes on would measure something else.
void require(bool what, int line = __builtin_LINE()) noexcept {
  if (what) return;
  std::fprintf(stderr, "scsi_submit.cpp:%d: not as expected\n", line);
  std::abort();
}

/// A driver that completes what it is given at once.
struct null_driver {
  void start(scsi::command& item) noexcept { item.device().complete(item); }
};

/// A ring of 64 KiB with both of its ends.
class ring {
 public:
  explicit ring(pmgate::vmbus::packet_types accepted) {
    require(out_.attach(memory_) == status::ok && in_.attach(memory_, {accepted}) == status::ok);
  }
  /// Returns: the packet as it has come out at the other end.
  received_packet pass(const packet& sent) noexcept {
    received_packet got;
    require(out_.write(sent).code == status::ok);
    require(in_.read(buffer_, sizeof buffer_, got).code == status::ok);
    return got;
  }

 private:
  static constexpr std::uint32_t size = 65536;
  std::unique_ptr<unsigned char[]> pages_ = std::make_unique<unsigned char[]>(4096 + size);
  flat_memory memory_{pages_.get(), pages_.get() + 4096, size};
  pmgate::vmbus::ring_producer<flat_memory> out_;
  pmgate::vmbus::ring_consumer<flat_memory> in_;
  unsigned char buffer_[256];
};

/// A driver that sends a packet about a page and has 64 bytes for an answer.
class ring_driver {
 public:
  void start(scsi::command& item) noexcept {
    const unsigned char request[64] = {};
    const std::uint64_t page = 0x1234;
    const pmgate::vmbus::gpa_range range{4096, 0, &page};
    packet sent;
    sent.type = packet_type::gpa_direct;
    sent.flags = pmgate::vmbus::flag_completion_requested;
    sent.trans_id = item.tag() + std::uint64_t{1};
    sent.payload = request;
    sent.payload_size = sizeof request;
    sent.ranges = &range;
    sent.range_count = 1;
    const received_packet seen = to_host_.pass(sent);
    packet answer;
    answer.type = packet_type::completion;
    answer.trans_id = seen.trans_id;
    answer.payload = seen.payload;
    answer.payload_size = seen.payload_size;
    require(to_guest_.pass(answer).trans_id == item.tag() + std::uint64_t{1});
    item.device().complete(item);
  }

 private:
  ring to_host_{pmgate::vmbus::host_accepts};
  ring to_guest_{pmgate::vmbus::guest_accepts};
};

/// The reference adapter and its host; each command reads 4 KiB.
class storvsc_driver : guest_port {
 public:
  storvsc_driver() {
    require(memory_.create(1024, first_pfn) == status::ok);
    const auto image = std::make_shared<disk_image>();
    require(image->create_temporary(1 << 20) == image_error::none);
    require(units_.attach_disk({0, 0, 0}, image));
    guest_port& port = *this;
    host_ = std::make_unique<storage_host>(memory_, units_, port, identity());
    adapter_ = std::make_unique<adapter>(config());
    require(adapter_->connect() == status::ok);
  }
  ~storvsc_driver() override { adapter_->disconnect(std::chrono::seconds(0)); }

  void start(scsi::command& item) noexcept {
    static constexpr unsigned char read_10[10] = {0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0};
    wire_ = {};
    std::memcpy(wire_.cdb.data(), read_10, sizeof read_10);
    wire_.cdb_length = sizeof read_10;
    wire_.direction = data_direction::from_device;
    wire_.tag = static_cast<std::uint16_t>(item.tag());
    wire_.pfns = &data_pfn;
    wire_.length = 4096;
    wire_.done = &on_done;
    wire_.context = &item;
    require(adapter_->submit(wire_) == 0);
    run();
  }

 private:
  static constexpr std::uint64_t first_pfn = 0x1000;
  static constexpr std::uint64_t data_pfn = first_pfn;
  static constexpr std::uint64_t ring_pfn = first_pfn + 16;

  static host_identity identity() {
    host_identity id;
    id.primary.relid = 1;
    id.primary.connection_id = 0x10001;
    return id;
  }
  adapter_config config() {
    adapter_config made;
    made.memory = &memory_;
    made.ring_pages.take = [](void*, std::uint32_t, std::uint64_t& first) noexcept {
      first = ring_pfn;
      return true;
    };
    made.ring_pages.give_back = [](void*, std::uint64_t, std::uint32_t) noexcept {};
    made.transport.context = this;
    made.transport.send = [](void* self, const pmgate::vmbus::control_message& message) noexcept {
      return static_cast<storvsc_driver*>(self)->tell(message);
    };
    made.transport.signal = [](void*, std::uint32_t) noexcept {};  // the host is polled
    made.transport.schedule = [](void* self, std::uint32_t ticket) noexcept {
      static_cast<storvsc_driver*>(self)->schedule(ticket);
    };
    made.transport.next_gpadl = [](void*) noexcept { return pmgate::vmbus::first_gpadl; };
    made.offer = host_->offer();
    made.hooks.context = this;
    made.hooks.cpu = [](void*) noexcept { return 0u; };
    made.hooks.wait = [](void* self) noexcept {
      static_cast<storvsc_driver*>(self)->run();
      return true;
    };
    return made;
  }
  /// A message to the host, who answers at once: nobody else would.
  status tell(const pmgate::vmbus::control_message& message) noexcept {
    const status sent = host_->on_message(message);
    while (host_->poll()) {
    }
    return sent;
  }
  void schedule(std::uint32_t ticket) noexcept {
    scheduled_ = true;
    ticket_ = ticket;
  }
  /// The host's turn, and that of the guest's interrupt.
  void run() noexcept {
    while (host_->poll()) {
    }
    adapter_->handle_doorbell();
    while (std::exchange(scheduled_, false)) adapter_->run_deferred(ticket_);
  }
  void deliver(const pmgate::vmbus::control_message& message) noexcept override {
    (void)adapter_->on_message(message.bytes, message.size);
  }
  void interrupt(std::uint32_t) noexcept override {}
  static void on_done(storvsc::command& done) noexcept {
    auto& item = *static_cast<scsi::command*>(done.context);
    item.device().complete(item, static_cast<int>(done.result));
  }

  pmgate::guest_memory memory_;
  scsi_target units_;
  std::unique_ptr<storage_host> host_;
  std::unique_ptr<adapter> adapter_;
  command wire_{};
  bool scheduled_ = false;
  std::uint32_t ticket_ = 0;
};

/// A command from submit() to the driver and back.
template <class Driver>
void submit(benchmark::State& state) {
  const auto driver = std::make_unique<Driver>();
  pmgate::pm::work_queue works{"kblockd"};
  scsi::host host{{[](scsi::host& of, scsi::command& item) noexcept {
                     static_cast<Driver*>(of.context())->start(item);
                     return 0;
                   },
                   driver.get()}};
  scsi::target target;
  scsi::device device(host, target, works);
  require(device.set_state(scsi::device_state::running) == status::ok);
  scsi::command item;
  for (auto _ : state) {
    require(device.submit(item) == status::ok);
    benchmark::ClobberMemory();
  }
  require(item.result_word() == 0 && device.busy() == 0);
}

}  // namespace

void add_submit(const char* gates, add_fn add) {
  add("scsi_submit_null/" + std::string(gates), &submit<null_driver>);
  add("scsi_submit_ring/" + std::string(gates), &submit<ring_driver>);
  add("scsi_submit_storvsc/" + std::string(gates), &submit<storvsc_driver>);
}

}  // namespace storvsc
