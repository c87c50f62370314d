// Owners of OpenSSL's objects.
#ifndef CMD_SECURITY_OPENSSL_PTR_H_
#define CMD_SECURITY_OPENSSL_PTR_H_

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace postcopy {

struct OpensslFree {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(X509_EXTENSION* extension) const {
    X509_EXTENSION_free(extension);
  }
};

template <typename T>
using OpensslPtr = std::unique_ptr<T, OpensslFree>;

// What went wrong in this thread first, in OpenSSL's words, and forgets it
// all. "unknown error" if nothing did.
inline std::string TakeOpensslError() {
  const unsigned long error = ERR_get_error();  // NOLINT: OpenSSL's type
  ERR_clear_error();
  const char* const reason = ERR_reason_error_string(error);
  return reason == nullptr ? "unknown error" : reason;
}

}  // namespace postcopy

#endif  // CMD_SECURITY_OPENSSL_PTR_H_
