// The control plane with an orchestrator of the version before: bytes that it
// has sent, and messages that have its fields and no others.

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "postcopy/v1/migration.pb.h"
#include "tests/two_hosts.h"

namespace postcopy {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::DescriptorProto;
using google::protobuf::DynamicMessageFactory;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using google::protobuf::FileDescriptorProto;
using google::protobuf::Message;

// The golden file's lines, without comments.
std::vector<std::string> Golden() {
  std::ifstream file("tests/golden/control_plane_n_minus_1.txt");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') lines.push_back(line);
  }
  return lines;
}

std::string TypeOf(const FieldDescriptor& field) {
  if (field.message_type() != nullptr) return field.message_type()->name();
  if (field.enum_type() != nullptr) return field.enum_type()->name();
  return field.type_name();
}

const FileDescriptor& Today() { return *v1::Migration::descriptor()->file(); }

// Today's lines of the golden file's kinds.
std::set<std::string> LinesOf(const FileDescriptor& file) {
  std::set<std::string> lines;
  for (int i = 0; i < file.message_type_count(); ++i) {
    const Descriptor& message = *file.message_type(i);
    lines.insert(absl::StrCat("message ", message.name()));
    for (int j = 0; j < message.field_count(); ++j) {
      const FieldDescriptor& field = *message.field(j);
      lines.insert(absl::StrCat(
          "field ", message.name(), " ", field.name(), " ", field.number(), " ",
          field.is_repeated() ? "repeated " : "", TypeOf(field)));
    }
  }
  for (int i = 0; i < file.enum_type_count(); ++i) {
    const EnumDescriptor& type = *file.enum_type(i);
    for (int j = 0; j < type.value_count(); ++j) {
      lines.insert(absl::StrCat("enum ", type.name(), " ",
                                type.value(j)->name(), " ",
                                type.value(j)->number()));
    }
  }
  if (file.service_count() == 0) return lines;
  for (int i = 0; i < file.service(0)->method_count(); ++i) {
    const auto& method = *file.service(0)->method(i);
    lines.insert(absl::StrCat("method ", method.name(), " ",
                              method.input_type()->name(), " ",
                              method.server_streaming() ? "stream " : "",
                              method.output_type()->name()));
  }
  return lines;
}

TEST(CompatibilityTest, NothingHasChangedItsNumberOrType) {
  std::set<std::string> today = LinesOf(Today());
  today.merge(LinesOf(*Today()
                           .FindMessageTypeByName("Migration")
                           ->FindFieldByName("role")
                           ->enum_type()
                           ->file()));
  const std::vector<std::string> golden = Golden();
  ASSERT_GT(golden.size(), 100u);
  for (const std::string& line : golden) {
    EXPECT_TRUE(today.contains(line)) << line;
  }
}

// Messages as the version before had them.
class OldMessages {
 public:
  OldMessages() {
    const std::vector<std::string> golden = Golden();
    for (const std::string& line : golden) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      if (words[0] == "field") {
        known_.insert(absl::StrCat(words[1], " ", words[2]));
      }
      if (words[0] != "enum" && words[0] != "method") known_.insert(words[1]);
    }
    // What it imports, as it is.
    for (int i = 0; i < Today().dependency_count(); ++i) {
      FileDescriptorProto imported;
      Today().dependency(i)->CopyTo(&imported);
      EXPECT_NE(pool_.BuildFile(imported), nullptr);
    }
    FileDescriptorProto file;
    Today().CopyTo(&file);
    file.clear_service();
    FileDescriptorProto old = file;
    old.clear_message_type();
    for (const DescriptorProto& message : file.message_type()) {
      if (known_.contains(message.name()))
        Keep(message, *old.add_message_type());
    }
    file_ = pool_.BuildFile(old);
    EXPECT_NE(file_, nullptr);
  }

  std::unique_ptr<Message> New(const std::string& name) {
    return std::unique_ptr<Message>(
        factory_.GetPrototype(file_->FindMessageTypeByName(name))->New());
  }

 private:
  void Keep(const DescriptorProto& message, DescriptorProto& old) {
    old.set_name(message.name());
    for (const auto& field : message.field()) {
      if (known_.contains(absl::StrCat(message.name(), " ", field.name()))) {
        *old.add_field() = field;
      }
    }
  }

  std::set<std::string> known_;
  DescriptorPool pool_;
  DynamicMessageFactory factory_{&pool_};
  const FileDescriptor* file_ = nullptr;
};

// A client that has bytes and no generated code.
class RawClient {
 public:
  explicit RawClient(const std::string& address)
      : stub_(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials())) {}

  grpc::Status Call(const std::string& method, const std::string& request,
                    std::string* response) {
    grpc::Slice slice(request);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    auto call = stub_.PrepareUnaryCall(
        &context, absl::StrCat("/postcopy.v1.MigrationService/", method),
        grpc::ByteBuffer(&slice, 1), &queue);
    call->StartCall();
    grpc::ByteBuffer bytes;
    grpc::Status status;
    call->Finish(&bytes, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    grpc::Slice answer;
    if (status.ok() && bytes.DumpToSingleSlice(&answer).ok()) {
      response->assign(answer.begin(), answer.end());
    }
    return status;
  }

 private:
  grpc::GenericStub stub_;
};

constexpr char kVm[] = "guest";

class OldOrchestratorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = WhyNoUserfaultfd();
    if (!why.empty()) GTEST_SKIP() << "no userfaultfd: " << why;
    auto hosts = TwoHosts::Create({});
    ASSERT_TRUE(hosts.ok()) << hosts.status();
    hosts_ = *std::move(hosts);
    ASSERT_TRUE(hosts_->AttachBoth(kVm).ok());
  }

  // `content` is the request in text format; returns the answer as the version
  // before understands it.
  std::unique_ptr<Message> Call(const std::string& address,
                                const std::string& method,
                                const std::string& content) {
    std::unique_ptr<Message> request = messages_.New(method + "Request");
    EXPECT_TRUE(
        google::protobuf::TextFormat::ParseFromString(content, request.get()));
    std::string bytes;
    const grpc::Status status =
        RawClient(address).Call(method, request->SerializeAsString(), &bytes);
    EXPECT_TRUE(status.ok()) << method << ": " << status.error_message();
    std::unique_ptr<Message> response = messages_.New(method + "Response");
    EXPECT_TRUE(response->ParseFromString(bytes));
    return response;
  }
  // A field of the answer's migration, as text.
  static std::string FieldOf(const Message& response, const std::string& name) {
    const Message& migration = response.GetReflection()->GetMessage(
        response, response.GetDescriptor()->FindFieldByName("migration"));
    const FieldDescriptor* field =
        migration.GetDescriptor()->FindFieldByName(name);
    EXPECT_NE(field, nullptr) << name;
    std::string text;
    google::protobuf::TextFormat::PrintFieldValueToString(migration, field, -1,
                                                          &text);
    return text;
  }

  OldMessages messages_;
  std::unique_ptr<TwoHosts> hosts_;
};

// What it does not know it does not send, and it waits for SwitchOver as ever:
// nothing switches over by itself.
TEST_F(OldOrchestratorTest, DrivesAMigration) {
  const std::string source = hosts_->control_address();
  const std::string destination = hosts_->destination_control_address();
  const std::string create = absl::StrCat(
      "migration_id: '", kVm, "' vm_name: '", kVm, "' request_id: ");
  auto created = Call(source, "CreateMigration", create + "'r1'");
  EXPECT_EQ(FieldOf(*created, "state"), "MIGRATION_STATE_PREPARING");
  EXPECT_EQ(FieldOf(*created, "policy"),
            "MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY");
  Call(destination, "CreateMigration",
       absl::StrCat(create, "'r2' source_address: '",
                    hosts_->network().address(), "'"));
  ASSERT_TRUE(hosts_
                  ->AwaitSource(kVm,
                                [](const v1::Migration& m) {
                                  return m.advice().recommended() &&
                                         m.rounds() >= 3;
                                })
                  .ok());
  const std::string id = absl::StrCat("migration_id: '", kVm, "'");
  auto now = Call(source, "GetMigration", id);
  EXPECT_EQ(FieldOf(*now, "state"), "MIGRATION_STATE_PRECOPY");
  now = Call(source, "SwitchOver", id + " request_id: 'r3'");
  ASSERT_TRUE(hosts_->AwaitDestination(kVm, MigrationHasEnded).ok());
  now = Call(destination, "GetMigration", id);
  EXPECT_EQ(FieldOf(*now, "state"), "MIGRATION_STATE_COMPLETED");
  auto all = Call(destination, "ListMigrations", "");
  EXPECT_EQ(all->GetReflection()->FieldSize(
                *all, all->GetDescriptor()->FindFieldByName("migrations")),
            1);
}

// Bytes that a client of the version before has sent, one call each.
TEST_F(OldOrchestratorTest, ItsBytesMeanWhatTheyMeant) {
  struct Sent {
    const char* method;
    const char* bytes;
    const char* meaning;
  };
  constexpr Sent kSent[] = {
      {"CreateMigration",
       "0a02723112036f6c641a0567756573742001288080800430074801",
       "request_id: 'r1' migration_id: 'old' vm_name: 'guest' policy: "
       "MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY bulk_limit_bytes_per_second: "
       "8388608 rounds_max: 7 bulk_zstd: true"},
      {"GetMigration", "0a036f6c64", "migration_id: 'old'"},
      {"CancelMigration", "0a02723312036f6c64",
       "request_id: 'r3' migration_id: 'old'"},
  };
  for (const Sent& sent : kSent) {
    SCOPED_TRACE(sent.method);
    const std::string bytes = absl::HexStringToBytes(sent.bytes);
    std::unique_ptr<Message> meant =
        messages_.New(absl::StrCat(sent.method, "Request"));
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(sent.meaning,
                                                              meant.get()));
    EXPECT_EQ(meant->SerializeAsString(), bytes);
    std::string answer;
    const grpc::Status status =
        RawClient(hosts_->control_address()).Call(sent.method, bytes, &answer);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  const v1::Migration now = hosts_->AtSource("old");
  EXPECT_EQ(now.state(), v1::MIGRATION_STATE_CANCELLED);
  EXPECT_EQ(now.bulk_limit_bytes_per_second(), 8u << 20);
  EXPECT_TRUE(now.bulk_zstd());
  EXPECT_EQ(now.switch_over_mode(), v1::SWITCH_OVER_MODE_MANUAL);
  EXPECT_EQ(now.deadline_ms_per_gib(), 0u);
}

}  // namespace
}  // namespace postcopy
