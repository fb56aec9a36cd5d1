use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::server::identity::Tokens;

struct Authority {
    parameters: rcgen::CertificateParams,
    key: rcgen::KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self {
            parameters,
            key: rcgen::KeyPair::generate().unwrap(),
        }
    }

    fn pem(&self) -> String {
        self.parameters.clone().self_signed(&self.key).unwrap().pem()
    }

    fn sign(&self, name: &str, groups: &[&str]) -> Identity {
        let issuer = rcgen::Issuer::from_params(&self.parameters, &self.key);
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        for group in groups {
            parameters
                .distinguished_name
                .push(rcgen::DnType::OrganizationName, *group);
        }
        parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }
}

#[tokio::test]
async fn tokens_decide_who_and_rules_what() {
    let bed = Bed::new().await;
    let ask = async |path: &str, authorization: &str| read(bed.send("GET", path, authorization).await).await;
    assert_eq!(bed.get("/pods").await.0, StatusCode::OK);
    let unauthorized = (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
    assert_eq!(ask("/pods", "").await, unauthorized);
    assert_eq!(ask("/pods", "Bearer wrong").await, unauthorized);
    assert_eq!(ask("/pods", "Basic admin-token").await, unauthorized);
    assert_eq!(ask("/healthz", "").await, unauthorized);
    assert_eq!(ask("/no/such/path", "").await, unauthorized);
    assert_eq!(ask("/metrics", "Bearer prom-token").await.0, StatusCode::OK);
    assert_eq!(
        ask("/pods", "Bearer prom-token").await,
        (
            StatusCode::FORBIDDEN,
            "Forbidden (user=prometheus, verb=get, resource=nodes, subresource(s)=[pods proxy])\n".to_owned()
        )
    );
    assert_eq!(
        ask("/%6detrics/../exec/a/b/c", "Bearer nobody-token").await.1,
        "Forbidden (user=nobody, verb=get, resource=nodes, subresource(s)=[metrics])\n"
    );
    let posted = read(
        bed.send("POST", "/run/default/web/app", "Bearer prom-token")
            .await,
    )
    .await;
    assert!(
        posted
            .1
            .contains("verb=create, resource=nodes, subresource(s)=[proxy]")
    );
}

#[tokio::test]
async fn anonymous_is_off_unless_asked_for() {
    let bed = Bed::with(|config| {
        config.anonymous = true;
        config.authorizer = Arc::new(authz::AlwaysAllow);
    })
    .await;
    assert_eq!(read(bed.send("GET", "/pods", "").await).await.0, StatusCode::OK);
    let wrong = bed.send("GET", "/pods", "Bearer wrong").await;
    assert_eq!(
        wrong.status(),
        StatusCode::UNAUTHORIZED,
        "a wrong token is nobody's"
    );
}

#[tokio::test]
async fn client_certificates_are_users_and_a_wrong_one_is_a_401() {
    let authority = Authority::new("clients");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority.pem()).unwrap();
    let path = file.path().to_owned();
    let bed = Bed::with(|config| config.client_ca = Some(path)).await;
    let ask = async |identity: &Identity, path: &str, authorization: &str| {
        let stream = bed.connect(Some(identity)).await;
        read(exchange(stream, request("GET", path, authorization, "")).await).await
    };
    let master = authority.sign("root", &["a", "system:masters"]);
    assert_eq!(ask(&master, "/pods", "").await.0, StatusCode::OK);
    let plain = authority.sign("prometheus", &[]);
    assert_eq!(ask(&plain, "/stats/summary", "").await.0, StatusCode::OK);
    assert!(
        ask(&plain, "/pods", "")
            .await
            .1
            .starts_with("Forbidden (user=prometheus, verb=get")
    );
    let foreign = Authority::new("others").sign("root", &["system:masters"]);
    assert_eq!(ask(&foreign, "/pods", "").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        ask(&foreign, "/pods", ADMIN).await.0,
        StatusCode::OK,
        "the token is right"
    );
    assert_eq!(bed.get("/pods").await.0, StatusCode::OK, "no certificate at all");
}

#[tokio::test]
async fn http2_is_spoken_too() {
    let bed = Bed::new().await;
    let stream = tls(bed.address, &bed.own_certificate(), None, b"h2")
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn an_http2_connection_without_requests_is_closed() {
    let bed = Bed::with(|config| config.limits.head = Duration::from_millis(200)).await;
    let stream = tls(bed.address, &bed.own_certificate(), None, b"h2")
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let ended = tokio::spawn(connection);
    std::fs::write(&bed.fake.log, "2026-01-01T00:00:00Z stdout F one\n").unwrap();
    let follow = Request::builder()
        .uri(format!(
            "https://{}/containerLogs/default/web/app?follow=true",
            bed.address
        ))
        .header("authorization", ADMIN)
        .body(Full::<Bytes>::default())
        .unwrap();
    let mut follow = sender.send_request(follow).await.unwrap().into_body();
    let first = follow.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "one\n");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!ended.is_finished(), "an answer is under way");
    drop(follow);
    // The sender is kept: it is the server that ends the connection.
    tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .expect("the server ends it")
        .unwrap()
        .unwrap();
    drop(sender);
}

#[tokio::test]
async fn a_connection_that_was_made_before_is_judged_by_the_tokens_of_now() {
    let bed = Bed::new().await;
    let stream = TokioIo::new(bed.connect(None).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let answer = sender
        .send_request(request("GET", "/pods", ADMIN, ""))
        .await
        .unwrap();
    assert_eq!(read(answer).await.0, StatusCode::OK);
    std::fs::remove_file(bed.folder.path().join("tokens.csv")).unwrap();
    let mut code = StatusCode::OK;
    for _ in 0..100 {
        let answer = sender
            .send_request(request("GET", "/pods", ADMIN, ""))
            .await
            .unwrap();
        code = read(answer).await.0;
        if code == StatusCode::UNAUTHORIZED {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        code,
        StatusCode::UNAUTHORIZED,
        "the file is gone, and its tokens with it"
    );
}

#[tokio::test]
async fn tokens_may_come_later_and_the_local_client_may_not_be_writable() {
    let bed = Bed::with(|config| {
        config.tokens = Some("/nowhere/tokens.csv".into());
        config.local_client = Some("/proc/no/such/folder".into());
    })
    .await;
    assert_eq!(bed.get("/pods").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn nothing_older_than_the_configured_tls_is_served() {
    let bed = Bed::with(|config| config.tls = crate::config::TlsVersion::V13).await;
    let connect = async |version: &'static rustls::SupportedProtocolVersion| {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(bed.own_certificate()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(bed.address).await.unwrap();
        let name = ServerName::try_from("node-1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .is_ok()
    };
    assert!(connect(&rustls::version::TLS13).await);
    assert!(!connect(&rustls::version::TLS12).await);
}

#[tokio::test]
async fn its_own_certificate_is_kept_and_only_root_reads_the_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bed = Bed::new().await;
    let before = std::fs::read(bed.own_certificate()).unwrap();
    let key = bed.folder.path().join("pki/kubelet.key");
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    bed.stop().await;
    let root = bed.folder.path().to_owned();
    let again = Bed::with(|config| config.cert_dir = root.join("pki")).await;
    assert_eq!(std::fs::read(bed.own_certificate()).unwrap(), before);
    assert!(
        tls(again.address, &bed.own_certificate(), None, b"http/1.1")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn changed_files_are_read_again_and_broken_ones_are_not_taken() {
    let bed = Bed::new().await;
    let tokens = bed.folder.path().join("tokens.csv");
    assert_eq!(
        bed.send("GET", "/pods", "Bearer new").await.status(),
        StatusCode::UNAUTHORIZED
    );
    std::fs::write(&tokens, "new,late,9,system:masters\n").unwrap();
    let mut code = StatusCode::UNAUTHORIZED;
    for _ in 0..100 {
        code = bed.send("GET", "/pods", "Bearer new").await.status();
        if code == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(code, StatusCode::OK);
    std::fs::write(&tokens, "only,two\n").unwrap();
    let old = std::fs::read(bed.own_certificate()).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["node-1".to_owned()]).unwrap();
    std::fs::write(
        bed.folder.path().join("pki/kubelet.key"),
        other.signing_key.serialize_pem(),
    )
    .unwrap();
    std::fs::write(bed.own_certificate(), other.cert.pem()).unwrap();
    let kept = bed.folder.path().join("old.crt");
    std::fs::write(&kept, old).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(
        tls(bed.address, &kept, None, b"http/1.1").await.is_ok(),
        "the tokens are broken"
    );
    std::fs::write(&tokens, "new,late,9,system:masters\n").unwrap();
    let mut taken = false;
    for _ in 0..100 {
        taken = tls(bed.address, &bed.own_certificate(), None, b"http/1.1")
            .await
            .is_ok();
        if taken {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(taken);
}

#[tokio::test]
async fn a_key_of_another_certificate_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let one = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    let files = CertificateFiles {
        certificate: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
    };
    std::fs::write(&files.certificate, one.cert.pem()).unwrap();
    std::fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
    let mut config = ServerConfig::new(folder.path().to_owned(), Arc::new(authz::AlwaysAllow));
    config.certificate = Some(files);
    let fake = Arc::new(Fake::new(folder.path()));
    let error = Server::bind(config, fake, KubeletMetrics::new())
        .await
        .err()
        .unwrap();
    let ServerError::Credentials(cause) = error else {
        panic!("{error}")
    };
    assert!(cause.to_string().ends_with("tls.crt`"), "{cause}");
}

#[tokio::test]
async fn slow_clients_are_let_go_and_leave_their_place() {
    let bed = Bed::with(|config| {
        config.limits.connections = 1;
        config.limits.handshake = Duration::from_millis(100);
        config.limits.head = Duration::from_millis(100);
        config.limits.body = Duration::from_millis(100);
    })
    .await;
    // Never shakes hands.
    let mut silent = TcpStream::connect(bed.address).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
    // Never ends its head.
    let mut half = bed.connect(None).await;
    half.write_all(b"GET /pods HTTP/1.1\r\nhost: n").await.unwrap();
    let mut rest = Vec::new();
    let _ = half.read_to_end(&mut rest).await;
    // Never sends its body.
    let mut bodiless = bed.connect(None).await;
    let head = "POST /run/default/web/app HTTP/1.1\r\nhost: n\r\nauthorization: Bearer admin-token\r\ncontent-length: 9\r\n\r\n";
    bodiless.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    bodiless.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    drop(bodiless);
    assert_eq!(bed.get("/pods").await.0, StatusCode::OK);
}

#[tokio::test]
async fn too_big_requests_are_refused() {
    let bed = Bed::new().await;
    let body = "x".repeat(70_000);
    let stream = bed.connect(None).await;
    let answer = exchange(stream, request("POST", "/run/default/web/app", ADMIN, &body)).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let mut long = request("GET", "/pods", ADMIN, "");
    long.headers_mut()
        .insert("x-long", "x".repeat(1_000_000).parse().unwrap());
    let stream = TokioIo::new(bed.connect(None).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    // The server may hang up before the client has sent it all.
    if let Ok(answer) = sender.send_request(long).await {
        assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}

#[tokio::test]
async fn a_server_that_stops_lets_requests_end_and_cuts_what_goes_on() {
    let mut bed = Bed::new().await;
    std::fs::write(&bed.fake.log, "2026-01-01T00:00:00Z stdout F one\n").unwrap();
    let mut follow = bed
        .send("GET", "/containerLogs/default/web/app?follow=true", ADMIN)
        .await
        .into_body();
    let first = follow.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "one\n");
    bed.stop().await;
    assert!(TcpStream::connect(bed.address).await.is_err());
    let rest = follow.frame().await;
    assert!(rest.is_none_or(|frame| frame.is_err()));
}

#[tokio::test]
async fn what_root_on_the_node_needs_is_left_for_its_client() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("etc/orlop");
    let left = place.clone();
    let bed = Bed::with(|config| config.local_client = Some(left)).await;
    let token = std::fs::read_to_string(place.join("node-client.token")).unwrap();
    assert_eq!(token.len(), 64);
    let file = place.join("node-client.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let certificate = bed.own_certificate();
    let expected = format!(
        "kubelet: https://{}\nca: {certificate:?}\ntokenFile: node-client.token\n",
        bed.address
    );
    assert_eq!(text, expected);
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let answer = bed.send("GET", "/pods", &format!("Bearer {token}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[test]
fn token_files_are_upstreams_csv() {
    let tokens = Tokens::parse("# c\n\nt1,u1,1,\"a, b\"\nt2 , u2,2\n\"t,3\",\"u\"\"3\",3,g\n").unwrap();
    assert_eq!(
        tokens.owner("t1").unwrap().groups,
        ["a", "b", "system:authenticated"]
    );
    assert_eq!(tokens.owner("t2").unwrap().name, "u2");
    assert_eq!(tokens.owner("t,3").unwrap().name, "u\"3");
    assert_eq!(tokens.owner("t"), None);
    assert_eq!(tokens.owner(""), None);
    assert_eq!(Tokens::parse("a,b").unwrap_err().0, 1);
    assert_eq!(
        Tokens::parse("x,y,z\n,b,c").unwrap_err(),
        (2, "the token is empty")
    );
    assert!(Tokens::parse("\"a,b,c").is_err());
}
proptest::proptest! {
    #[test]
    fn no_certificate_and_no_token_file_panics(bytes: Vec<u8>, text: String) {
        let _ = crate::server::subject::of(&bytes);
        let _ = Tokens::parse(&text);
    }
}
