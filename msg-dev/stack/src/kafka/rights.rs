//! Owns the rights on a cluster with an authorizer: its users, the login of a client, and the rights that a test grants
//! and withdraws.

use std::ffi::{CStr, CString};

use rdkafka::admin::AdminClient;
use rdkafka::bindings as rd;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use super::Kafka;
use crate::error::StackError;

const TIMEOUT_MS: i32 = 30_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    Topic(String),
    /// The consumer group of this name.
    Group(String),
    TransactionalId(String),
    /// The cluster itself, for rights that are not on one of its resources.
    Cluster,
}

/// An operation that a right allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    All,
    Read,
    Write,
    Create,
    Delete,
    Alter,
    Describe,
    ClusterAction,
    DescribeConfigs,
    AlterConfigs,
    IdempotentWrite,
}

/// One right of one user. Kafka lets Read, Write, Delete and Alter imply Describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub user: String,
    pub resource: Resource,
    pub operation: Operation,
}

impl Right {
    pub fn new(user: &str, operation: Operation, resource: Resource) -> Right {
        Right { user: user.to_owned(), resource, operation }
    }
}

/// The first password of a user of the stack's cluster.
pub fn password(user: &str) -> String {
    format!("{user}-secret")
}

/// Returns librdkafka's settings for a login of this user, in the form of KAFKA_PROPERTIES.
pub fn login(user: &str) -> String {
    login_with(user, &password(user))
}

pub fn login_with(user: &str, password: &str) -> String {
    format!("security.protocol=sasl_plaintext,sasl.mechanisms=PLAIN,sasl.username={user},sasl.password={password}")
}

impl Kafka {
    /// The value of `bootstrap.servers` for a client that logs in as one of [`super::ClusterOptions::users`]. Clients
    /// of [`Kafka::bootstrap`] may do everything.
    pub fn bootstrap_for_users(&self) -> String {
        let brokers = self.cluster.iter().flat_map(|cluster| &cluster.brokers);
        brokers.filter_map(|broker| broker.users.as_ref().map(ToString::to_string)).collect::<Vec<_>>().join(",")
    }

    /// Sets the password of a user. Each broker uses it from its next start on.
    pub fn set_password(&self, user: &str, password: &str) -> Result<(), StackError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        for (_, known) in cluster.users().iter_mut().filter(|(name, _)| name == user) {
            password.clone_into(known);
        }
        cluster.brokers.iter().try_for_each(|broker| cluster.write_settings(broker))
    }

    /// Grants these rights. When this returns, the broker that received the request applies them.
    pub async fn grant(&self, rights: Vec<Right>) -> Result<(), StackError> {
        let bootstrap = self.bootstrap.clone();
        blocking(move || change(&bootstrap, &rights, Change::Grant)).await
    }

    /// Withdraws these rights. When this returns, the broker that received the request no longer grants them.
    pub async fn withdraw(&self, rights: Vec<Right>) -> Result<(), StackError> {
        let bootstrap = self.bootstrap.clone();
        blocking(move || change(&bootstrap, &rights, Change::Withdraw)).await
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Grant,
    Withdraw,
}

async fn blocking(change: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), StackError> {
    let result = tokio::task::spawn_blocking(change).await.expect("a change of rights does not panic");
    result.map_err(|detail| StackError::Kafka { doing: "change rights".to_owned(), detail })
}

/// Grants or withdraws rights through librdkafka: rust-rdkafka wraps no request about rights.
fn change(bootstrap: &str, rights: &[Right], change: Change) -> Result<(), String> {
    let client: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().map_err(|error| error.to_string())?;
    let rk = client.inner().native_ptr();
    let mut bindings = rights.iter().map(|right| binding(right, change)).collect::<Result<Vec<_>, _>>()?;
    let operation = match change {
        Change::Grant => rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATEACLS,
        Change::Withdraw => rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DELETEACLS,
    };
    let mut reason = [0; 256];
    // SAFETY: the client lives to the end of this function. Every pointer comes from librdkafka, is checked if it may
    // be null, and is freed once, after the last use of what it owns. A filter and a binding have the same type.
    unsafe {
        let queue = rd::rd_kafka_queue_new(rk);
        let options = rd::rd_kafka_AdminOptions_new(rk, operation);
        rd::rd_kafka_AdminOptions_set_request_timeout(options, TIMEOUT_MS, reason.as_mut_ptr(), reason.len());
        match change {
            Change::Grant => rd::rd_kafka_CreateAcls(rk, bindings.as_mut_ptr(), bindings.len(), options, queue),
            Change::Withdraw => rd::rd_kafka_DeleteAcls(rk, bindings.as_mut_ptr(), bindings.len(), options, queue),
        }
        let event = rd::rd_kafka_queue_poll(queue, TIMEOUT_MS);
        let result = if event.is_null() { Err("no response".to_owned()) } else { outcome(event, change) };
        if !event.is_null() {
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_AdminOptions_destroy(options);
        rd::rd_kafka_queue_destroy(queue);
        rd::rd_kafka_AclBinding_destroy_array(bindings.as_mut_ptr(), bindings.len());
        result
    }
}

fn binding(right: &Right, change: Change) -> Result<*mut rd::rd_kafka_AclBinding_t, String> {
    use rd::{rd_kafka_AclOperation_t as op, rd_kafka_ResourceType_t as kind};
    let (kind, name) = match &right.resource {
        Resource::Topic(name) => (kind::RD_KAFKA_RESOURCE_TOPIC, name.as_str()),
        Resource::Group(name) => (kind::RD_KAFKA_RESOURCE_GROUP, name.as_str()),
        Resource::TransactionalId(name) => (kind::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID, name.as_str()),
        // Kafka's own name for the single cluster.
        Resource::Cluster => (kind::RD_KAFKA_RESOURCE_BROKER, "kafka-cluster"),
    };
    let operation = match right.operation {
        Operation::All => op::RD_KAFKA_ACL_OPERATION_ALL,
        Operation::Read => op::RD_KAFKA_ACL_OPERATION_READ,
        Operation::Write => op::RD_KAFKA_ACL_OPERATION_WRITE,
        Operation::Create => op::RD_KAFKA_ACL_OPERATION_CREATE,
        Operation::Delete => op::RD_KAFKA_ACL_OPERATION_DELETE,
        Operation::Alter => op::RD_KAFKA_ACL_OPERATION_ALTER,
        Operation::Describe => op::RD_KAFKA_ACL_OPERATION_DESCRIBE,
        Operation::ClusterAction => op::RD_KAFKA_ACL_OPERATION_CLUSTER_ACTION,
        Operation::DescribeConfigs => op::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS,
        Operation::AlterConfigs => op::RD_KAFKA_ACL_OPERATION_ALTER_CONFIGS,
        Operation::IdempotentWrite => op::RD_KAFKA_ACL_OPERATION_IDEMPOTENT_WRITE,
    };
    let literal = rd::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL;
    let allow = rd::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
    let text = |text: String| CString::new(text).map_err(|_| "a name holds no NUL".to_owned());
    let (name, principal) = (text(name.to_owned())?, text(format!("User:{}", right.user))?);
    let (name, principal, host) = (name.as_ptr(), principal.as_ptr(), c"*".as_ptr());
    let mut reason = [0; 256];
    // SAFETY: the texts outlive the call, which copies them.
    let made = unsafe {
        let (at, size) = (reason.as_mut_ptr(), reason.len());
        match change {
            Change::Grant => {
                rd::rd_kafka_AclBinding_new(kind, name, literal, principal, host, operation, allow, at, size)
            }
            Change::Withdraw => {
                rd::rd_kafka_AclBindingFilter_new(kind, name, literal, principal, host, operation, allow, at, size)
            }
        }
    };
    // SAFETY: librdkafka ends the text with a NUL.
    if made.is_null() { Err(unsafe { string(reason.as_ptr()) }) } else { Ok(made) }
}

/// # Safety
/// `event` is the response to this change, and outlives the call.
unsafe fn outcome(event: *mut rd::rd_kafka_event_t, change: Change) -> Result<(), String> {
    let none = rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    // SAFETY: the event owns every pointer below; indices are below the counts.
    unsafe {
        if rd::rd_kafka_event_error(event) != none {
            return Err(string(rd::rd_kafka_event_error_string(event)));
        }
        let mut count = 0;
        let errors: Vec<*const rd::rd_kafka_error_t> = match change {
            Change::Grant => {
                let results =
                    rd::rd_kafka_CreateAcls_result_acls(rd::rd_kafka_event_CreateAcls_result(event), &mut count);
                (0..count).map(|index| rd::rd_kafka_acl_result_error(*results.add(index))).collect()
            }
            Change::Withdraw => {
                let result = rd::rd_kafka_event_DeleteAcls_result(event);
                let results = rd::rd_kafka_DeleteAcls_result_responses(result, &mut count);
                (0..count).map(|index| rd::rd_kafka_DeleteAcls_result_response_error(*results.add(index))).collect()
            }
        };
        let failed = errors.into_iter().find(|error| !error.is_null() && rd::rd_kafka_error_code(*error) != none);
        failed.map_or(Ok(()), |error| Err(string(rd::rd_kafka_error_string(error))))
    }
}

/// # Safety
/// `text` is a C string that outlives the call.
unsafe fn string(text: *const std::ffi::c_char) -> String {
    // SAFETY: the caller passes a C string that outlives the call.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
