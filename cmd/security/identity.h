// Who somebody is in TLS.
#ifndef CMD_SECURITY_IDENTITY_H_
#define CMD_SECURITY_IDENTITY_H_

#include <string>

namespace postcopy {

// A certificate, with those that lead to its authority, and its private key,
// both in PEM.
struct Identity {
  std::string certificate;
  std::string key;
};

}  // namespace postcopy

#endif  // CMD_SECURITY_IDENTITY_H_
