//! How the kubelet is reached, and who asks: from options, a file that the node leaves, and the kubelet's defaults.
//!
//! The file is YAML: `kubelet`, `tokenFile`, `clientCertificate`, `clientKey`, `ca`, all of them optional. Paths in it may
//! be relative to its folder.

use std::path::{Path, PathBuf};

use controlplane_api::strict;
use serde::Deserialize;

use crate::args::AccessArguments;
use crate::failure::Failure;

/// Where the kubelet listens when nobody says otherwise.
const DEFAULT_KUBELET: &str = "https://127.0.0.1:10250";
/// Where a node leaves its file.
pub(crate) const NODE_FILE: &str = "/etc/orlop/node-client.yaml";
/// The environment's word for another such file.
pub(crate) const NODE_VARIABLE: &str = "ORLOP_NODE";
/// The certificate that a kubelet makes for itself.
const DEFAULT_CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet.crt";

/// How the kubelet is reached, and who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) kubelet: String,
    pub(crate) token: Option<String>,
    /// Certificate and key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    pub(crate) ca: Option<PathBuf>,
}

/// The node's file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeFile {
    kubelet: Option<String>,
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
    ca: Option<PathBuf>,
}

/// Finds out, with this process's environment.
pub(crate) fn find(options: &AccessArguments) -> Result<Access, Failure> {
    let named = std::env::var_os(NODE_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let file = match &named {
        Some(path) => Some(read(path)?),
        None if Path::new(NODE_FILE).exists() => Some(read(Path::new(NODE_FILE))?),
        None => None,
    };
    merge(options, file.unwrap_or_default())
}

fn read(path: &Path) -> Result<NodeFile, Failure> {
    let remedy =
        || format!("set {NODE_VARIABLE} to the file that the node left, or use --kubelet and --token-file");
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::helped(format!("failed to read {}: {error}", path.display()), remedy()))?;
    let mut file = parse(&path.display().to_string(), &text)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let places = [
        &mut file.token_file,
        &mut file.client_certificate,
        &mut file.client_key,
        &mut file.ca,
    ];
    for place in places.into_iter().flatten() {
        *place = folder.join(&place);
    }
    Ok(file)
}

fn parse(name: &str, text: &str) -> Result<NodeFile, Failure> {
    let documents = strict::parse_file(name, text, strict::Limits::default())
        .map_err(|error| Failure::new(format!("failed to parse {error}")))?;
    match documents.as_slice() {
        [] => Ok(NodeFile::default()),
        [document] => document.decode().map_err(|errors| {
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Failure::new(format!("failed to parse {}", all.join("; ")))
        }),
        _ => Err(Failure::new(format!("{name} holds more than one document"))),
    }
}

/// An option goes before the file.
fn merge(options: &AccessArguments, file: NodeFile) -> Result<Access, Failure> {
    let token_file = options.token_file.clone().or(file.token_file);
    let token = token_file.map(|path| read_token(&path)).transpose()?;
    let client = match (&options.client_certificate, &options.client_key) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        _ => file.client_certificate.zip(file.client_key),
    };
    let default = Path::new(DEFAULT_CERTIFICATE);
    Ok(Access {
        kubelet: options
            .kubelet
            .clone()
            .or(file.kubelet)
            .unwrap_or_else(|| DEFAULT_KUBELET.to_owned()),
        token,
        client,
        ca: options
            .ca
            .clone()
            .or(file.ca)
            .or_else(|| default.exists().then(|| default.to_owned())),
    })
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::helped(
            format!("failed to read the token in {}: {error}", path.display()),
            "run as root on the node, or name another file with --token-file",
        )
    })?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        let what = format!("{} must hold one token and nothing else", path.display());
        return Err(Failure::new(what));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_before_the_nodes_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.yaml");
        std::fs::write(folder.path().join("token"), "secret\n").unwrap();
        std::fs::write(
            &path,
            "kubelet: https://10.0.0.1:1\ntokenFile: token\nca: /ca.crt\n",
        )
        .unwrap();
        let plain = merge(&AccessArguments::default(), read(&path).unwrap()).unwrap();
        assert_eq!(plain.kubelet, "https://10.0.0.1:1");
        assert_eq!(plain.token.as_deref(), Some("secret"));
        assert_eq!(plain.ca, Some("/ca.crt".into()));
        let options = AccessArguments {
            kubelet: Some("https://n:2".into()),
            ..AccessArguments::default()
        };
        assert_eq!(
            merge(&options, read(&path).unwrap()).unwrap().kubelet,
            "https://n:2"
        );
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = parse("node.yaml", "kubelet: x\nkublet: y\n")
            .unwrap_err()
            .to_string();
        assert!(wrong.contains("node.yaml") && wrong.contains("kublet"), "{wrong}");
        let missing = read(Path::new("/no/such/file")).unwrap_err();
        assert!(missing.to_string().contains("/no/such/file"));
    }
}
