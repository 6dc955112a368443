//! Temporary.
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::*;
use std::sync::atomic::*;
use std::time::*;
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (conns, per, secs): (usize, usize, u64) = (a[2].parse().unwrap(), a[3].parse().unwrap(), a[4].parse().unwrap());
    let n = std::sync::Arc::new(AtomicU64::new(0));
    let bad = std::sync::Arc::new(AtomicU64::new(0));
    let lat = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let end = Instant::now() + Duration::from_secs(secs);
    let mut js = vec![];
    for c in 0..conns {
        let ch = tonic::transport::Endpoint::from_shared(a[1].clone()).unwrap().connect().await.unwrap();
        for p in 0..per {
            let mut cl = MsgGatewayClient::new(ch.clone());
            let (n, bad, lat) = (n.clone(), bad.clone(), lat.clone());
            js.push(tokio::spawn(async move {
                let mut i = 0u64;
                let mut l = vec![];
                while Instant::now() < end {
                    i += 1;
                    let msg = Msg { recv_id: format!("r{}", (i * 7919 + (c * 1000 + p) as u64) % 20000), send_id: format!("s{c}-{p}"), client_msg_id: format!("{i}"), session_type: 1, content_type: "text/plain".into(), content: vec![b'x'; 256].into(), attributes: Default::default() };
                    let t = Instant::now();
                    match cl.send_msg(SendMsgRequest { msg: Some(msg), wait_for: 0 }).await {
                        Ok(_) => { n.fetch_add(1, Ordering::Relaxed); }
                        Err(e) => { if bad.fetch_add(1, Ordering::Relaxed) == 0 { println!("{e:?}"); } }
                    }
                    l.push(t.elapsed().as_micros() as u64);
                }
                lat.lock().unwrap().extend(l);
            }));
        }
    }
    for j in js { j.await.unwrap(); }
    let mut l = lat.lock().unwrap().clone(); l.sort();
    println!("ok {}/s bad {} p50 {}us p99 {}us max {}us", n.load(Ordering::Relaxed) / secs, bad.load(Ordering::Relaxed), l[l.len()/2], l[l.len()*99/100], l[l.len()-1]);
}
