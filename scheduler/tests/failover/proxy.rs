//! A wire to one address that can be cut: what stands between a scheduler and etcd.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// See the module documentation. Dropping it cuts it for good.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cut: watch::Sender<bool>,
    _serving: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, watched) = watch::channel(false);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, target, watched));
        Self {
            address,
            cut,
            _serving: serving,
        }
    }

    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn serve(listener: TcpListener, target: String, cut: watch::Receiver<bool>) {
    let mut wires = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let (target, mut cut) = (target.clone(), cut.clone());
        wires.spawn(async move {
            if *cut.borrow_and_update() {
                return;
            }
            let Ok(mut far) = TcpStream::connect(&target).await else {
                return;
            };
            tokio::select! {
                // Neither arm is taken up again: the wire ends with the first.
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.wait_for(|cut| *cut) => {}
            }
        });
        while wires.try_join_next().is_some() {}
    }
}
