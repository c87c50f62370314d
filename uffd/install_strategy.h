// How the pages of one region are made visible to the guest.
#ifndef UFFD_INSTALL_STRATEGY_H_
#define UFFD_INSTALL_STRATEGY_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/types.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// One system call each, which inserts pages only where there are none, up to
// the first that is there, and wakes who waits for what it inserted. Results
// are those of UffdOps::Copy. Addresses and lengths are multiples of the
// region's page size. Thread-safe.
class InstallStrategy {
 public:
  virtual ~InstallStrategy() = default;

  // Inserts copies of the bytes at `source`.
  virtual UffdResult Data(UffdOps& ops, HostAddress address,
                          const uint8_t* source, ByteCount length) const = 0;
  // Inserts zeros.
  virtual UffdResult Zero(UffdOps& ops, HostAddress address,
                          ByteCount length) const = 0;

  // For people: "UFFDIO_COPY, UFFDIO_ZEROPAGE".
  virtual absl::string_view name() const = 0;
};

// The strategy for memory whose pages have `page_size`, by what the kernel can
// do there:
//
//   anonymous, shmem     UFFDIO_COPY, UFFDIO_ZEROPAGE
//   hugetlbfs            UFFDIO_COPY, and UFFDIO_COPY of zeros: the kernel has
//                        no zero page of that size to map
//
// UNIMPLEMENTED, saying what the VMM should use, if neither fits.
// RESOURCE_EXHAUSTED if there is no address space for a huge page of zeros.
absl::StatusOr<std::unique_ptr<InstallStrategy>> ChooseInstallStrategy(
    ByteCount page_size, const UffdRegistration& registration);

}  // namespace postcopy

#endif  // UFFD_INSTALL_STRATEGY_H_
