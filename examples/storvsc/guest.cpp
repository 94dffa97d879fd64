// SPDX-License-Identifier: MIT
#include "storvsc/guest.hpp"

#include <algorithm>

namespace storvsc {
namespace {

namespace scsi = pmgate::scsi;
using pmgate::enter_flags;
using namespace std::chrono_literals;

constexpr std::uint32_t memory_pages = 16384;  // 64 MiB
constexpr std::uint64_t first_pfn = 0x1000;
constexpr std::uint64_t medium_bytes = 1 << 20;
constexpr auto drain_limit = 10s;
constexpr const char* adapter_name = "hv_storvsc bf78936f-7d8f-45ce-ab03-6c341452e55d";

// ThreadSanitizer knows addresses, not pages: to it a store through one mapping is not
// ordered before a load through another. There both sides use the same mapping.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STORVSC_UNDER_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(STORVSC_UNDER_TSAN)
constexpr bool map_rings = false;
#else
constexpr bool map_rings = true;
#endif

constexpr scsi_address disk_address{0, 0, 0};
constexpr scsi_address cdrom_address{0, 0, 1};

host_identity identity() {
  host_identity id;
  id.primary.relid = 1;
  id.primary.connection_id = 0x10001;
  return id;
}

/// Whose rules the midlayer follows: only 6.12 lets nothing but PM pass.
scsi::scsi_generation generation_of(policy p) {
  return p == policy::quiesce_6_12 ? scsi::scsi_generation::v6_12 : scsi::scsi_generation::v5_7;
}

}  // namespace

bool page_pool::take(std::uint32_t count, std::uint64_t& first) {
  const std::scoped_lock lock(mutex_);
  for (std::size_t tried = 0, run = 0; tried < 2 * used_.size(); ++tried) {
    if (next_ == used_.size()) next_ = run = 0;
    run = used_[next_] ? 0 : run + 1;
    ++next_;
    if (run == count) {
      const std::size_t begin = next_ - count;
      for (std::size_t i = begin; i < next_; ++i) used_[i] = true;
      first = first_ + begin;
      return true;
    }
  }
  return false;
}

void page_pool::give_back(std::uint64_t first, std::uint32_t count) {
  const std::scoped_lock lock(mutex_);
  for (std::size_t i = 0; i < count; ++i) used_[static_cast<std::size_t>(first - first_) + i] = false;
}

guest::guest(policy which, std::shared_ptr<disk_image> disk, std::chrono::milliseconds dark)
    : policy_(which),
      dark_(dark),
      host_(memory_, units_, *this, identity()),
      midlayer_(scsi::host_template{&queuecommand, this, generation_of(which)}) {
  (void)units_.attach_disk(disk_address, std::move(disk));
}

guest::~guest() { shutdown(); }

status guest::boot() {
  status s = memory_.create(memory_pages, first_pfn);
  if (s == status::ok) s = bell_.create();
  if (s != status::ok) return s;
  pages_ = std::make_unique<page_pool>(first_pfn, memory_pages);
  if (medium_->create_temporary(medium_bytes) != image_error::none) return status::io_error;
  (void)units_.attach_drive(cdrom_address, medium_);

  adapter_config config;
  config.memory = &memory_;
  config.ring_pages.context = pages_.get();
  config.ring_pages.take = [](void* pool, std::uint32_t count, std::uint64_t& first) noexcept {
    return static_cast<page_pool*>(pool)->take(count, first);
  };
  config.ring_pages.give_back = [](void* pool, std::uint64_t first, std::uint32_t count) noexcept {
    static_cast<page_pool*>(pool)->give_back(first, count);
  };
  config.transport.context = this;
  config.transport.send = [](void* self, const vmbus::control_message& message) noexcept {
    return static_cast<guest*>(self)->host_.on_message(message);
  };
  config.transport.signal = [](void* self, std::uint32_t) noexcept {
    static_cast<guest*>(self)->host_.ring();
  };
  config.transport.schedule = [](void* self, std::uint32_t ticket) noexcept {
    static_cast<guest*>(self)->interrupts_.schedule(ticket);
  };
  config.transport.next_gpadl = [](void*) noexcept {
    static std::atomic<std::uint32_t> next{vmbus::first_gpadl};
    // [gpadl.next] relaxed: the number is all that is wanted.
    return next.fetch_add(1, std::memory_order_relaxed);
  };
  config.offer = host_.offer();
  config.map_rings = map_rings;
  config.init_timeout = 30s;
  config.hardware_queues = 2;  // one for each unit: tags are the units' own
  config.gate = gating::none;  // the policy alone is to keep commands away
  config.pausable = policy_ == policy::busy_flag;
  adapter_ = std::make_unique<adapter>(config);

  s = host_.start();
  if (s != status::ok) return s;
  interrupts_.start(*adapter_);
  for (pmgate::pm::work_queue* queue : {&kblockd_, &events_}) {
    workers_.emplace_back([queue] { queue->run(); });
  }
  freezer_.add(events_);
  s = adapter_->connect();
  if (s != status::ok) return s;

  disk_ = std::make_unique<scsi::device>(midlayer_, target_, kblockd_);
  cdrom_ = std::make_unique<scsi::device>(midlayer_, target_, kblockd_);
  for (scsi::device* unit : {disk_.get(), cdrom_.get()}) {
    if (s == status::ok) s = unit->set_state(scsi::device_state::running);
  }
  return s;
}

void guest::shutdown() {
  if (!adapter_) return;
  adapter_->disconnect();
  cdrom_.reset();
  disk_.reset();
  freezer_.remove(events_);
  kblockd_.stop();
  events_.stop();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  interrupts_.stop();
  host_.stop();
  adapter_.reset();
}

dma_buffer guest::allocate(std::size_t size) {
  const auto count = static_cast<std::uint32_t>((size + vmbus::page_size - 1) / vmbus::page_size);
  dma_buffer buffer;
  std::uint64_t first = 0;
  if (!pages_->take(count, first)) return buffer;
  buffer.bytes = {static_cast<std::byte*>(memory_.translate(first, count)), size};
  for (std::uint32_t i = 0; i < count; ++i) buffer.pfns.push_back(first + i);
  return buffer;
}

int guest::execute(scsi::device& unit, scsi_command& c, std::span<const unsigned char> cdb,
                   data_direction direction, const dma_buffer* data, std::size_t length,
                   scsi::command_flags flags) {
  c.wire = {};
  c.wire.lun = &unit == cdrom_.get() ? cdrom_address.lun : disk_address.lun;
  c.wire.hw_queue = c.wire.lun;
  std::copy(cdb.begin(), cdb.end(), c.wire.cdb.begin());
  c.wire.cdb_length = static_cast<std::uint8_t>(cdb.size());
  c.wire.direction = direction;
  c.wire.tagged = &unit == disk_.get();
  c.wire.pfns = data != nullptr ? data->pfns.data() : nullptr;
  c.wire.length = static_cast<std::uint32_t>(length);
  const status s = unit.execute(c, flags);
  return s == status::ok ? c.result_word() : static_cast<int>(s);
}

int guest::queuecommand(scsi::host& host, scsi::command& c) noexcept {
  auto& self = *static_cast<guest*>(host.context());
  auto& wire = static_cast<scsi_command&>(c).wire;
  wire.tag = static_cast<std::uint16_t>(c.tag());
  wire.done = &on_done;
  wire.context = &c;
  return self.adapter_->submit(wire);
}

void guest::on_done(storvsc::command& wire) noexcept {
  auto& c = *static_cast<scsi::command*>(wire.context);
  c.device().complete(c, static_cast<int>(wire.result));
}

void guest::deliver(const vmbus::control_message& message) noexcept {
  (void)adapter_->on_message(message.bytes, message.size);
}

void guest::interrupt(std::uint32_t) noexcept { bell_.ring(); }

void guest::change_medium(bool insert) {
  if (insert) {
    (void)units_.insert(cdrom_address, medium_);
  } else {
    (void)units_.eject(cdrom_address);
  }
}

// -- power management

unsigned guest::freeze_tasks(kernel_log& log) {
  unsigned failed = 0;
  log.line("Freezing user space processes");
  failed += freezer_.freeze_processes() != status::ok;
  if (policy_ == policy::freeze_kthreads) {
    log.line("Freezing remaining freezable tasks");
    failed += freezer_.freeze_kernel_threads() != status::ok;
  }
  return failed;
}

/// The class gates, children first. sd's cache is flushed by a PM command: it passes.
unsigned guest::suspend_devices(kernel_log& log) {
  unsigned failed = 0;
  if (quiesces()) {
    failed += cdrom_->quiesce() != status::ok;
    log.line("sr 0:0:0:1: bus quiesce");
    failed += disk_->quiesce() != status::ok;
    log.line("sd 0:0:0:0: bus quiesce");
  }
  scsi_command flush;
  static constexpr unsigned char synchronize_cache[10] = {0x35};
  failed += execute(*disk_, flush, synchronize_cache, data_direction::none, nullptr, 0,
                    scsi::command_flags::pm) != 0;
  log.line("sd 0:0:0:0: [sda] Synchronizing SCSI cache");
  log.line("scsi target0:0:0: bus quiesce");
  log.line("scsi host0: bus quiesce");
  return failed;
}

/// The driver's gate if it has one, then drain and teardown.
unsigned guest::suspend_adapter(kernel_log& log) {
  unsigned failed = 0;
  if (policy_ == policy::host_block) failed += midlayer_.block() != status::ok;
  if (policy_ == policy::busy_flag) failed += adapter_->set_paused(true) != status::ok;
  failed += adapter_->suspend(drain_limit) != status::ok;
  log.line("%s: noirq bus quiesce", adapter_name);
  return failed;
}

unsigned guest::resume_adapter(kernel_log& log) {
  unsigned failed = 0;
  failed += adapter_->resume() != status::ok;
  log.line("%s: noirq bus restore, rings at page 0x%llx", adapter_name,
           static_cast<unsigned long long>(adapter_->ring_pfn()));
  if (policy_ == policy::busy_flag) failed += adapter_->set_paused(false) != status::ok;
  if (policy_ == policy::host_block) {
    failed += midlayer_.unblock(scsi::device_state::running) != status::ok;
  }
  return failed;
}

void guest::resume_devices(kernel_log& log) {
  if (!quiesces()) return;
  disk_->resume();
  log.line("sd 0:0:0:0: bus restore");
  cdrom_->resume();
  log.line("sr 0:0:0:1: bus restore");
}

void guest::tell_of_crash(kernel_log& log, std::uint64_t violations_before) {
  const std::uint64_t count = adapter_->violations() - violations_before;
  if (count == 0) return;
  const std::uint64_t address = adapter_->last_fault_address();
  log.line("BUG: kernel NULL pointer dereference, address: %016llx",
           static_cast<unsigned long long>(address));
  log.line("  storvsc: no channel table, entry of CPU %llu wanted; %llu such submissions counted",
           static_cast<unsigned long long>(address / 8), static_cast<unsigned long long>(count));
}

unsigned guest::hibernate(kernel_log& log) {
  unsigned failed = freeze_tasks(log);
  if (failed == 0) {
    failed += suspend_devices(log);
    failed += suspend_adapter(log);
    log.line("old pages are the host's to spoil: image kernel takes over");
    const std::uint64_t before = adapter_->violations();
    std::this_thread::sleep_for(dark_);
    tell_of_crash(log, before);
    failed += resume_adapter(log);
    resume_devices(log);
  }
  freezer_.thaw_processes();
  log.line("Restarting tasks ... done.");
  return failed;
}

}  // namespace storvsc
