//! The admin port over TLS and on a Unix socket, and the health check with both.

use std::time::Duration;

use msg_common::admin::{AdminAddress, AdminTlsOptions, probe_service};
use msg_stack::{Service, ServiceSpec};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::server_files;
use crate::support::certificates::{Ca, LOCAL, caller, connect};
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// Runs the health check of a service with its own settings; returns its exit code.
async fn healthcheck(service: &Service) -> Option<i32> {
    let program = msg_stack::service::find_binary(&service.spec().binary).unwrap();
    let mut command = Command::new(program);
    command.arg("healthcheck").envs(service.spec().env.iter().cloned()).kill_on_drop(true);
    timeout(WAIT_TIMEOUT, command.output()).await.expect("it ends").unwrap().status.code()
}

#[tokio::test]
async fn admin_port_is_served_over_tls_and_on_a_socket() {
    let world = World::new("tls_admin").await;
    let ca = Ca::new("ours");
    let files = server_files(&ca.sign(&LOCAL), None);
    let tls = AdminTlsOptions {
        admin_tls_cert_file: Some(files.path("tls.crt")),
        admin_tls_key_file: Some(files.path("tls.key")),
    };
    let with_tls = |spec: ServiceSpec| {
        spec.env("ADMIN_TLS_CERT_FILE", files.text("tls.crt")).env("ADMIN_TLS_KEY_FILE", files.text("tls.key"))
    };
    let socket = files.path("admin.sock");
    let on_socket = |spec: ServiceSpec| spec.env("ADMIN_LISTEN", format!("unix:{}", socket.display()));
    let (plain, unix) = (AdminTlsOptions::default(), AdminAddress::Unix(socket.clone()));

    let gateways = [world.gateway("tls", with_tls), world.gateway("socket", on_socket)].map(|gateway| gateway.service);
    let transfers = [world.transfer("tls", with_tls), world.transfer("socket", on_socket)];
    for [over_tls, on_socket] in [gateways, transfers] {
        let address = over_tls.spec().admin.unwrap();
        let probes = [(&over_tls, AdminAddress::Tcp(address), &tls), (&on_socket, unix.clone(), &plain)];
        for (service, address, tls) in probes {
            assert_eq!(healthcheck(service).await, Some(1), "it does not run");
            service.launch().unwrap();
            eventually("the service is ready", async || {
                let (status, body) = probe_service(&address, tls, "/readyz").await?;
                ensure(status == 200, body)
            })
            .await;
            assert_eq!(healthcheck(service).await, Some(0));
            let (_, metrics) = probe_service(&address, tls, "/metrics").await.unwrap();
            let shown = metrics.contains("msg_tls_certificate_expiry_timestamp_seconds{use=\"admin\"}");
            assert_eq!(shown, tls.files().is_some());
        }
        // The certificate is verified by callers that want to, and plain text gets nothing.
        connect(&address.to_string(), &caller(&ca.pem(), None)).await.unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let mut response = Vec::new();
        let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut response)).await.expect("it is closed");
        assert!(!String::from_utf8_lossy(&response).contains("HTTP/1.1"));
        for service in [over_tls, on_socket] {
            assert!(service.stop().await.unwrap().success());
        }
    }
}
