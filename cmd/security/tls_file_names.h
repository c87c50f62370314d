// What the files of --tls_dir are called.
#ifndef CMD_SECURITY_TLS_FILE_NAMES_H_
#define CMD_SECURITY_TLS_FILE_NAMES_H_

namespace postcopy {

// Certificates of the authorities that peers' certificates must lead to.
inline constexpr char kAuthoritiesFile[] = "ca-cert.pem";
// Who this host is to those that dial it, and to those that it dials.
inline constexpr char kServerCertificateFile[] = "server-cert.pem";
inline constexpr char kServerKeyFile[] = "server-key.pem";
inline constexpr char kClientCertificateFile[] = "client-cert.pem";
inline constexpr char kClientKeyFile[] = "client-key.pem";

}  // namespace postcopy

#endif  // CMD_SECURITY_TLS_FILE_NAMES_H_
