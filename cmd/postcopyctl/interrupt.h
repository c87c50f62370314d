// Ctrl-C as a question instead of an end.
#ifndef CMD_POSTCOPYCTL_INTERRUPT_H_
#define CMD_POSTCOPYCTL_INTERRUPT_H_

namespace postcopy {

// From here on the first SIGINT or SIGTERM only makes Interrupted() true. The
// second ends the process, as it would have without this.
void CatchInterrupts();

// Thread-safe.
bool Interrupted();

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_INTERRUPT_H_
