//! The table against the contract's descriptor, and every rule against every kind of caller.

use msg_common::proto::DESCRIPTORS;
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::{Value, json};

use super::*;

fn caller(claims: &Value, rule: Rule) -> Caller {
    let identity = Identity::of_claims(claims.as_object().expect("an object"), "sub").expect("they are good");
    let call = AuditedCall::of(&http::Request::post("/msg.v1.MsgGateway/SendMsg").body(()).expect("it is valid"));
    Caller::known(Arc::new(identity), rule, call)
}

fn with_scope(scope: &str, rule: Rule) -> Caller {
    caller(&json!({ "sub": "alice", "exp": 1, "scope": scope }), rule)
}

fn send(caller: &Caller, send_id: &str) -> bool {
    let msg = Msg { send_id: send_id.into(), recv_id: "bob".into(), ..Msg::default() };
    allowed(caller.check_send(&msg, || "msg.send_id".into()))
}

fn read(caller: &Caller, recv_id: &str) -> bool {
    allowed(caller.check_read(recv_id, || "recv_id".into()))
}

fn allowed(result: Result<(), Failure>) -> bool {
    match result {
        Ok(()) => true,
        Err(Failure::PermissionDenied(_)) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_method_of_the_contract_has_exactly_one_rule() {
    let descriptors = FileDescriptorSet::decode(DESCRIPTORS).expect("it was generated");
    let services = descriptors.file.iter().filter(|file| file.package() == "msg.v1").flat_map(|file| &file.service);
    let mut methods = Vec::new();
    for service in services {
        assert_eq!(format!("msg.v1.{}", service.name()), SERVICE_NAME, "a service without rules");
        methods.extend(service.method.iter().map(|method| method.name().to_owned()));
    }
    methods.sort_unstable();
    let mut rules: Vec<_> = RULES.iter().map(|(name, _)| (*name).to_owned()).collect();
    rules.sort_unstable();
    assert_eq!(methods, rules);
}

#[test]
fn path_outside_the_table_is_denied() {
    for path in [
        "",
        "/",
        "/msg.v1.MsgGateway",
        "/msg.v1.MsgGateway/",
        "/msg.v1.MsgGateway/sendmsg",
        "/x/SendMsg",
        "/msg.v1.MsgGateway/SendMsg/",
        "//SendMsg",
        "/msg.v1.MsgGateway/PullMsgs/SendMsg",
    ] {
        assert_eq!((Rule::of_path(path), method_name(path)), (None, "unknown"), "{path}");
    }
    let status = "/msg.v1.MsgGateway/GetMsgStatus";
    assert_eq!((Rule::of_path(status), method_name(status)), (Some(Rule::ReadOrOwnMessage), "GetMsgStatus"));
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    assert_eq!((Rule::of_path(reflection), method_name(reflection)), (Some(Rule::Known), "reflection"));
}

/// Rows: the scopes of alice. Columns: send as alice, send as group-1, read alice, read group-1, read bob.
#[test]
fn each_scope_allows_what_it_says_and_nothing_else() {
    for (scope, expected) in [
        ("", [true, false, true, false, false]),
        ("msg.send.any", [true, true, true, false, false]),
        ("msg.send:group-*", [true, true, true, false, false]),
        ("msg.send:bot", [true, false, true, false, false]),
        ("msg.read.any", [true, false, true, true, true]),
        ("msg.read:group-*", [true, false, true, true, false]),
        ("msg.read:bob", [true, false, true, false, true]),
        ("msg.send.any msg.read.any", [true, true, true, true, true]),
    ] {
        let (sender, reader) = (with_scope(scope, Rule::Send), with_scope(scope, Rule::Read));
        let found = [
            send(&sender, "alice"),
            send(&sender, "group-1"),
            read(&reader, "alice"),
            read(&reader, "group-1"),
            read(&reader, "bob"),
        ];
        assert_eq!(found, expected, "{scope}");
    }
}

#[test]
fn check_of_another_rule_is_denied_whatever_the_scopes() {
    let all = "msg.send.any msg.read.any";
    for rule in [Rule::Send, Rule::Read, Rule::ReadOrOwnMessage, Rule::Known] {
        let caller = with_scope(all, rule);
        assert_eq!(send(&caller, "alice"), rule == Rule::Send, "{rule:?}");
        assert_eq!(read(&caller, "alice"), rule == Rule::Read, "{rule:?}");
        let status = allowed(caller.check_status(&status("alice", "alice", "1")));
        assert_eq!(status, rule == Rule::ReadOrOwnMessage, "{rule:?}");
    }
}

/// A request for the state of a message from `send_id` to `recv_id`.
fn status(send_id: &str, recv_id: &str, client_msg_id: &str) -> GetMsgStatusRequest {
    GetMsgStatusRequest {
        recv_id: recv_id.into(),
        msg_id: msg_id(send_id, recv_id, client_msg_id).to_string(),
        send_id: send_id.into(),
        client_msg_id: client_msg_id.into(),
        ..GetMsgStatusRequest::default()
    }
}

#[test]
fn state_is_for_the_reader_and_for_the_sender() {
    let may = |scope: &str, request: &GetMsgStatusRequest| {
        allowed(with_scope(scope, Rule::ReadOrOwnMessage).check_status(request))
    };
    let own = status("alice", "bob", "1");
    let foreign = status("carol", "bob", "1");
    assert!(may("", &own), "the sender");
    assert!(!may("", &foreign), "neither sender nor reader");
    assert!(may("", &status("carol", "alice", "1")), "the receiver");
    assert!(may("msg.read:bob", &foreign) && may("msg.read.any", &foreign), "a reader by scope");
    assert!(may("msg.send:carol", &foreign) && may("msg.send.any", &foreign), "a sender by scope");
    // The ID of a message is predictable. To claim to be its sender is not enough.
    let claimed = GetMsgStatusRequest { send_id: "alice".into(), ..foreign };
    assert!(!may("", &claimed), "the ID is of another sender");
    let hidden = GetMsgStatusRequest { client_msg_id: String::new(), ..claimed };
    assert!(!may("", &hidden), "the ID is derived, so it needs the client_msg_id");
    let elsewhere = GetMsgStatusRequest { recv_id: "dave".into(), ..own.clone() };
    assert!(!may("", &elsewhere), "the ID is of another inbox");
    let unclaimed = GetMsgStatusRequest { send_id: String::new(), ..own };
    assert!(!may("", &unclaimed), "no sender is given");
    // Without a client_msg_id, no other caller has the ID.
    assert!(may("", &status("alice", "bob", "")));
    assert!(!may("", &GetMsgStatusRequest { msg_id: "x".into(), ..status("alice", "bob", "") }));
}

#[test]
fn anyone_may_do_everything_without_a_mode() {
    let anyone = Caller::anyone();
    assert!(send(&anyone, "x") && read(&anyone, "y") && allowed(anyone.check_status(&status("a", "b", ""))));
    assert_eq!(anyone.stream_end(), None);
}

#[test]
fn error_names_the_field_and_not_its_value() {
    let denied = with_scope("", Rule::Read).check_read("secret-inbox", || "inboxes[3].recv_id".into());
    let Err(Failure::PermissionDenied(text)) = denied else { panic!("{denied:?}") };
    assert!(text.starts_with("inboxes[3].recv_id ") && !text.contains("secret-inbox"), "{text}");
}
