#include "cmd/vmm_library/postcopy_vmm.h"

#include <new>

#include "absl/types/span.h"
#include "cmd/vmm_library/vmm_handle.h"
#include "dirtytrack/types.h"

// Each function passes on to the handle; what it does is told in the header.

namespace {

using postcopy::PageCount;
using postcopy::PageIndex;
using postcopy::SlotId;

constexpr int kNoHandle = POSTCOPY_VMM_INVALID_ARGUMENT;

constexpr const char* kCodeNames[] = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
};

inline SlotId ToSlotId(uint32_t slot) {
  return {static_cast<uint16_t>(slot >> 16), static_cast<uint16_t>(slot)};
}

inline int MarkedIf(bool marked) {
  return marked ? POSTCOPY_VMM_OK : POSTCOPY_VMM_OUT_OF_RANGE;
}

}  // namespace

uint32_t postcopy_vmm_version(void) { return POSTCOPY_VMM_VERSION; }

const char* postcopy_vmm_code_name(int code) {
  const bool known = code >= 0 && code <= POSTCOPY_VMM_UNAUTHENTICATED;
  return kCodeNames[known ? code : POSTCOPY_VMM_UNKNOWN];
}

postcopy_vmm* postcopy_vmm_new(void) { return new (std::nothrow) postcopy_vmm; }

int postcopy_vmm_free(postcopy_vmm* vmm) {
  return vmm == nullptr ? POSTCOPY_VMM_OK : postcopy_vmm::Free(vmm);
}

const char* postcopy_vmm_message(const postcopy_vmm* vmm) {
  return vmm == nullptr ? "the handle is null" : vmm->message();
}

int postcopy_vmm_add_region(postcopy_vmm* vmm,
                            const postcopy_vmm_region* region) {
  return vmm == nullptr ? kNoHandle : vmm->AddRegion(region);
}

int postcopy_vmm_add_slot(postcopy_vmm* vmm, const postcopy_vmm_slot* slot) {
  return vmm == nullptr ? kNoHandle : vmm->AddSlot(slot);
}

int postcopy_vmm_attach(postcopy_vmm* vmm, const postcopy_vmm_options* options,
                        const postcopy_vmm_callbacks* callbacks) {
  return vmm == nullptr ? kNoHandle : vmm->Attach(options, callbacks);
}

int postcopy_vmm_fd(const postcopy_vmm* vmm) {
  return vmm == nullptr ? -1 : vmm->fd();
}

int postcopy_vmm_process(postcopy_vmm* vmm) {
  return vmm == nullptr ? kNoHandle : vmm->Process();
}

int postcopy_vmm_run(postcopy_vmm* vmm) {
  return vmm == nullptr ? kNoHandle : vmm->Run();
}

void postcopy_vmm_stop(postcopy_vmm* vmm) {
  if (vmm != nullptr) vmm->Stop();
}

int postcopy_vmm_guest_place(const postcopy_vmm* vmm) {
  return vmm == nullptr ? POSTCOPY_VMM_GUEST_HERE : vmm->guest_place();
}

int postcopy_vmm_explain(postcopy_vmm* vmm, const char* sentence) {
  return vmm == nullptr ? kNoHandle : vmm->Explain(sentence);
}

int postcopy_vmm_append_device_state(postcopy_vmm* vmm, const void* bytes,
                                     size_t length) {
  return vmm == nullptr ? kNoHandle : vmm->AppendDeviceState(bytes, length);
}

int postcopy_vmm_discard_guest(postcopy_vmm* vmm) {
  return vmm == nullptr ? kNoHandle : vmm->DiscardGuest();
}

int postcopy_vmm_marker_new(postcopy_vmm* vmm, postcopy_vmm_marker** marker) {
  if (vmm != nullptr) return vmm->NewMarker(marker);
  if (marker != nullptr) *marker = nullptr;
  return kNoHandle;
}

void postcopy_vmm_marker_free(postcopy_vmm_marker* marker) { delete marker; }

int postcopy_vmm_mark(postcopy_vmm_marker* marker, uint32_t slot,
                      uint64_t page) {
  return MarkedIf(marker->writer.Mark(ToSlotId(slot), PageIndex(page)));
}

int postcopy_vmm_mark_pages(postcopy_vmm_marker* marker, uint32_t slot,
                            uint64_t first, uint64_t count) {
  return MarkedIf(marker->writer.MarkRun(ToSlotId(slot),
                                         {PageIndex(first), PageCount(count)}));
}

int postcopy_vmm_mark_bitmap(postcopy_vmm_marker* marker, uint32_t slot,
                             uint64_t first_word, const uint64_t* words,
                             size_t word_count) {
  return MarkedIf(marker->writer.MergeWords(
      ToSlotId(slot), first_word, absl::MakeConstSpan(words, word_count)));
}

int postcopy_vmm_mark_address(postcopy_vmm_marker* marker, const void* address,
                              uint64_t length) {
  return MarkedIf(marker->addresses->Mark(reinterpret_cast<uintptr_t>(address),
                                          length, marker->writer,
                                          marker->last));
}
