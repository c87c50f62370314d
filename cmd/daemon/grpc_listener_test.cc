#include "cmd/daemon/grpc_listener.h"

#include <google/protobuf/empty.pb.h>
#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>

#include "postcopy/v1/migration.grpc.pb.h"

namespace postcopy {
namespace {

using google::protobuf::Empty;
using google::protobuf::Int32Value;
using google::protobuf::Int64Value;
using google::protobuf::StringValue;

// Calls a method whose messages no generated code is at hand for, by messages
// of the same wire format.
template <typename Request, typename Response>
grpc::Status Call(const std::string& address, const std::string& method,
                  const Request& request, Response* response) {
  grpc::TemplatedGenericStub<Request, Response> stub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(30));
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, method, {}, &request, response,
                 [&done](grpc::Status status) { done.set_value(status); });
  return done.get_future().get();
}

// As HealthCheckResponse.ServingStatus has them.
constexpr int kServing = 1;
constexpr int kNotServing = 2;
constexpr int kUnknownService = -1;

int Health(const std::string& address, const std::string& service) {
  StringValue request;
  request.set_value(service);
  Int32Value response;
  const grpc::Status status =
      Call(address, "/grpc.health.v1.Health/Check", request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    return kUnknownService;
  }
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.value();
}

grpc::StatusCode AskChannelz(const std::string& address) {
  Empty response;
  return Call(address, "/grpc.channelz.v1.Channelz/GetServers", Int64Value(),
              &response)
      .error_code();
}

class GrpcListenerTest : public ::testing::Test {
 protected:
  std::unique_ptr<GrpcListener> Listen(GrpcListener::Options options) {
    options.address = "127.0.0.1:0";
    options.security.credentials = grpc::InsecureServerCredentials();
    auto listener = GrpcListener::Create(options, {&service_});
    EXPECT_TRUE(listener.ok()) << listener.status();
    return *std::move(listener);
  }

  v1::MigrationService::Service service_;
};

TEST_F(GrpcListenerTest, HealthHasANameForEachServiceAndOneForAll) {
  const auto listener =
      Listen({.health_names = {"postcopy.v1.MigrationService",
                               "postcopy.v1.DataPlaneService"}});
  for (const char* name :
       {"", "postcopy.v1.MigrationService", "postcopy.v1.DataPlaneService"}) {
    EXPECT_EQ(Health(listener->address(), name), kServing) << name;
  }
  EXPECT_EQ(Health(listener->address(), "postcopy.v1.Other"), kUnknownService);
}

TEST_F(GrpcListenerTest, WhoDrainsIsNotServingUntilItServesAgain) {
  const auto listener =
      Listen({.health_names = {"postcopy.v1.MigrationService"}});
  for (const bool serving : {false, true}) {
    listener->SetServing(serving);
    for (const char* name : {"", "postcopy.v1.MigrationService"}) {
      EXPECT_EQ(Health(listener->address(), name),
                serving ? kServing : kNotServing)
          << name;
    }
  }
}

// In this order: see GrpcListener::Options::channelz.
TEST_F(GrpcListenerTest, ChannelzIsWhereItWasAskedFor) {
  const auto without = Listen({});
  const auto with = Listen({.channelz = true});
  EXPECT_EQ(AskChannelz(with->address()), grpc::StatusCode::OK);
  EXPECT_EQ(AskChannelz(without->address()), grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace postcopy
