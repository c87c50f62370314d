// Compiled with options of its own (see BUILD.bazel): no library, no data, no
// instrumentation, so that the bytes run where nothing else exists. Everything
// is inlined into the two functions of the section `demovm_guest`.
//
// Guest memory is accessed as volatile: two 64-bit accesses are never merged,
// reordered or turned into a call of memset.
#define DEMOVM_GUEST_CODE
#include "cmd/demovm/guest_program.h"

#define DEMOVM_GUEST_FUNCTION \
  DEMOVM_NOT_INSTRUMENTED     \
  [[gnu::section("demovm_guest"), gnu::noinline, gnu::used]]

extern "C" const uint8_t __start_demovm_guest[];
extern "C" const uint8_t __stop_demovm_guest[];

namespace postcopy::demovm {
namespace {

// One in so many (a power of two) of ...
constexpr uint64_t kWalkOneIn = 4;     // steps walks on, the others write hot
constexpr uint64_t kFillOneIn = 8;     // walked pages never written is written
constexpr uint64_t kColdOneIn = 64;    // other walked pages is written
constexpr uint64_t kZeroedOneIn = 32;  // writes fills the page with zeros

// The parts of one random word that the decisions of a step take, none twice.
constexpr int kWalkShift = 0;
constexpr int kZeroedShift = 4;
constexpr int kWriteShift = 12;
constexpr int kPageShift = 32;

DEMOVM_INLINE bool OneIn(uint64_t random, int shift, uint64_t n) {
  return ((random >> shift) & (n - 1)) == 0;
}

// The guest under KVM: words in XMM registers, which code compiled with
// -mgeneral-regs-only leaves alone; RAM at its guest physical address.
struct KvmEnv {
  template <uint32_t kRegister>
  DEMOVM_INLINE uint64_t Get() const {
    uint64_t value;
    asm volatile("movq %%xmm%c1, %0" : "=r"(value) : "i"(kRegister) : "memory");
    return value;
  }
  template <uint32_t kRegister>
  DEMOVM_INLINE void Set(uint64_t value) const {
    asm volatile("movq %0, %%xmm%c1" : : "r"(value), "i"(kRegister) : "memory");
  }
  DEMOVM_INLINE uint64_t base() const { return 0; }
  DEMOVM_INLINE void MarkWritten(uint64_t) const {}
  DEMOVM_INLINE bool ShouldStop() const { return false; }
  DEMOVM_INLINE void Report(GuestReport kind, uint64_t a, uint64_t b,
                            uint64_t c, uint64_t d) const {
    asm volatile("outl %%eax, %%dx"
                 :
                 : "a"(kind), "d"(kReportPort), "b"(a), "c"(b), "S"(c), "D"(d)
                 : "memory");
  }
};

// The guest as a thread of its VMM.
struct ThreadEnv {
  const GuestThread* thread;

  template <uint32_t kRegister>
  DEMOVM_INLINE uint64_t Get() const {
    return thread->registers[kRegister];
  }
  template <uint32_t kRegister>
  DEMOVM_INLINE void Set(uint64_t value) const {
    thread->registers[kRegister] = value;
  }
  DEMOVM_INLINE uint64_t base() const {
    return reinterpret_cast<uint64_t>(thread->ram);
  }
  // After the write, and with a full barrier even if the bit is set: the
  // collector may have taken the bit and read the page before the write.
  DEMOVM_INLINE void MarkWritten(uint64_t page) const {
    __atomic_fetch_or(&thread->dirty_bits[page / 64], uint64_t{1} << page % 64,
                      __ATOMIC_SEQ_CST);
  }
  DEMOVM_INLINE bool ShouldStop() const {
    return __atomic_load_n(thread->stop, __ATOMIC_RELAXED) != 0;
  }
  DEMOVM_INLINE void Report(GuestReport kind, uint64_t a, uint64_t b,
                            uint64_t c, uint64_t d) const {
    const uint64_t numbers[4] = {a, b, c, d};
    thread->report(thread->report_context, kind, numbers);
  }
};

template <typename Env>
struct Guest {
  Env env;
  const GuestParams* params;
  uint32_t vcpu;
  uint64_t owned;  // pages

  template <typename T>
  DEMOVM_INLINE volatile T* At(uint64_t guest_physical) const {
    return reinterpret_cast<volatile T*>(env.base() + guest_physical);
  }
  template <uint32_t kRegister>
  DEMOVM_INLINE void Add(uint64_t amount) const {
    env.template Set<kRegister>(env.template Get<kRegister>() + amount);
  }
  DEMOVM_INLINE uint64_t Page(uint64_t own) const {
    return OwnedPage(*params, vcpu, own);
  }
  DEMOVM_INLINE uint32_t Entry(uint64_t page) const {
    return *At<uint32_t>(EntryAddress(*params, page));
  }
  DEMOVM_INLINE void MarkAddress(uint64_t low_guest_physical) const {
    env.MarkWritten(low_guest_physical / kGuestPageBytes);
  }

  DEMOVM_INLINE uint64_t Random() const {
    uint64_t x = env.template Get<kRandom>();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    env.template Set<kRandom>(x);
    // xorshift's low bits alone are weak.
    return x * 0x2545f4914f6cdd1d;
  }

  DEMOVM_INLINE void Mismatch(GuestReport kind, uint64_t a, uint64_t b,
                              uint64_t c, uint64_t d) const {
    Add<kMismatches>(1);
    const uint64_t address = params->mailbox_address + vcpu * kGuestPageBytes;
    volatile GuestMailbox* mailbox = At<GuestMailbox>(address);
    if (mailbox->first_kind == 0) {
      mailbox->first[0] = a;
      mailbox->first[1] = b;
      mailbox->first[2] = c;
      mailbox->first[3] = d;
      mailbox->first_kind = kind;
      MarkAddress(address);
    }
    env.Report(kind, a, b, c, d);
  }

  // The first word of `page` that is not what `entry` says; kWordsPerPage if
  // all are.
  DEMOVM_INLINE uint64_t FindBadWord(uint64_t page, uint32_t entry) const {
    const volatile uint64_t* words = At<uint64_t>(AddressOfPage(*params, page));
    const uint64_t stride = PageStride(entry);
    uint64_t expected = PageSeed(page, entry);
    uint64_t j = 0;
    for (; j < kWordsPerPage && words[j] == expected; ++j) expected += stride;
    return j;
  }

  DEMOVM_INLINE void Check(uint64_t page, uint32_t entry) const {
    const uint64_t bad = FindBadWord(page, entry);
    if (bad < kWordsPerPage) [[unlikely]] {
      Mismatch(kReportBadPage, page, entry, bad,
               At<uint64_t>(AddressOfPage(*params, page))[bad]);
    }
    Add<kChecks>(1);
  }

  DEMOVM_INLINE void Fill(uint64_t page, uint32_t entry) const {
    volatile uint64_t* words = At<uint64_t>(AddressOfPage(*params, page));
    const uint64_t stride = PageStride(entry);
    uint64_t word = PageSeed(page, entry);
    for (uint64_t j = 0; j < kWordsPerPage; ++j, word += stride) {
      words[j] = word;
    }
    env.MarkWritten(page);
  }

  // Checks page number `own`, which has `entry` now, and writes its next
  // version. A vCPU may be stopped, and looked at, between any two
  // instructions: until words, entry and sums agree again (and from the check
  // on, so that nothing found right is overwritten unseen) the page is "in
  // flight".
  DEMOVM_INLINE void CheckAndWrite(uint64_t own, uint32_t entry,
                                   bool zeroed) const {
    const uint64_t page = Page(own);
    const uint32_t next = NextEntry(entry, zeroed);
    env.template Set<kInFlightEntry>(uint64_t{next} << 32 | entry);
    env.template Set<kInFlight>(page + 1);
    Check(page, entry);
    Fill(page, next);
    *At<uint32_t>(EntryAddress(*params, page)) = next;
    MarkAddress(EntryAddress(*params, page));
    const uint64_t change = TableTerm(page, next) - TableTerm(page, entry);
    Add<kTableSum>(change);
    // The walk has been there already: keep what it summed up to date.
    if (own < env.template Get<kWalk>()) Add<kWalkSum>(change);
    Add<kPageWrites>(1);
    env.template Set<kInFlight>(0);
  }

  DEMOVM_INLINE void WriteHot(uint64_t random) const {
    const uint64_t hot = HotPages(*params, owned);
    uint64_t own = ((random >> kPageShift) * hot) >> 32;
    if (IsNeverWritten(*params, own)) --own;
    CheckAndWrite(own, Entry(Page(own)),
                  OneIn(random, kZeroedShift, kZeroedOneIn));
  }

  // All pages have been read: their entries must add up to what was written.
  // This sees a page that was lost together with its entry. The sum is then
  // taken as found, so that one loss is one mismatch.
  DEMOVM_INLINE void EndWalk() const {
    const uint64_t expected = env.template Get<kTableSum>();
    const uint64_t found = env.template Get<kWalkSum>();
    if (found != expected) [[unlikely]] {
      Mismatch(kReportBadSum, vcpu, expected, found, 0);
      env.template Set<kTableSum>(found);
    }
    env.template Set<kWalkSum>(0);
    env.template Set<kWalk>(0);
  }

  DEMOVM_INLINE void WalkOn(uint64_t random) const {
    const uint64_t own = env.template Get<kWalk>();
    const uint64_t page = Page(own);
    const uint32_t entry = Entry(page);
    Add<kWalkSum>(TableTerm(page, entry));
    env.template Set<kWalk>(own + 1);
    if (OneIn(random, kWriteShift, entry == 0 ? kFillOneIn : kColdOneIn) &&
        !IsNeverWritten(*params, own)) {
      CheckAndWrite(own, entry, OneIn(random, kZeroedShift, kZeroedOneIn));
    } else {
      Check(page, entry);
    }
    if (own + 1 == owned) EndWalk();
  }

  DEMOVM_INLINE void ReportProgress() const {
    const uint64_t address = params->mailbox_address + vcpu * kGuestPageBytes;
    At<GuestMailbox>(address)->steps = env.template Get<kSteps>();
    At<GuestMailbox>(address)->mismatches = env.template Get<kMismatches>();
    MarkAddress(address);
    env.Report(kReportProgress, env.template Get<kSteps>(),
               env.template Get<kPageWrites>(), env.template Get<kChecks>(),
               env.template Get<kMismatches>());
  }

  DEMOVM_INLINE void Run() const {
    while (!env.ShouldStop()) {
      const uint64_t random = Random();
      if (OneIn(random, kWalkShift, kWalkOneIn)) {
        WalkOn(random);
      } else {
        WriteHot(random);
      }
      Add<kSteps>(1);
      if (env.template Get<kSteps>() % kStepsPerReport == 0) ReportProgress();
    }
  }
};

}  // namespace

extern "C" {
DEMOVM_GUEST_FUNCTION void DemovmKvmEntry(const GuestParams* params,
                                          uint64_t vcpu) {
  const uint32_t index = static_cast<uint32_t>(vcpu);
  Guest<KvmEnv>{KvmEnv(), params, index, OwnedPages(*params, index)}.Run();
}
DEMOVM_GUEST_FUNCTION void DemovmThreadEntry(const GuestParams* params,
                                             uint32_t vcpu,
                                             const GuestThread* thread) {
  Guest<ThreadEnv>{ThreadEnv{thread}, params, vcpu, OwnedPages(*params, vcpu)}
      .Run();
}
}  // extern "C"

GuestCode GuestProgram() {
  return {
      __start_demovm_guest, __stop_demovm_guest,
      static_cast<uint64_t>(reinterpret_cast<const uint8_t*>(&DemovmKvmEntry) -
                            __start_demovm_guest)};
}

void RunGuestThread(const GuestParams* params, uint32_t vcpu,
                    const GuestThread* thread) {
  DemovmThreadEntry(params, vcpu, thread);
}

}  // namespace postcopy::demovm
