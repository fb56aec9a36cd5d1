# The part of hack/up --cri-only: one pod with one container, driven with crictl. Sourced.

step "image pull" pull

pod=$("$crictl" pods --name '^demo$' --state ready -q | head -1)
if [ -z "$pod" ]; then
    cat >"$up/pod.json" <<'EOF'
{
  "metadata": { "name": "demo", "namespace": "default", "uid": "demo-1", "attempt": 0 },
  "hostname": "demo",
  "log_directory": "/var/log/pods/demo",
  "linux": {}
}
EOF
    cat >"$up/container.json" <<EOF
{
  "metadata": { "name": "web", "attempt": 0 },
  "image": { "image": "$image" },
  "labels": { "io.kubernetes.pod.name": "demo", "io.kubernetes.pod.namespace": "default" },
  "log_path": "web.log",
  "linux": {}
}
EOF
    run_pod() {
        local t=$(date +%s%N)
        # A pod that ended badly in an earlier run still holds the name.
        "$crictl" pods --name '^demo$' -q | while read -r old; do "$crictl" rmp -f "$old"; done
        pod=$(quietly runp "$up/pod.json") && echo "runp    $(millis "$t")"
        t=$(date +%s%N)
        container=$(quietly create "$pod" "$up/container.json" "$up/pod.json") && echo "create  $(millis "$t")"
        t=$(date +%s%N)
        "$crictl" start "$container" >/dev/null && echo "start   $(millis "$t")"
    }
    step "pod with one container" run_pod
else
    container=$("$crictl" ps -q --pod "$pod" | head -1)
fi

ip=$("$crictl" inspectp -o go-template --template '{{.status.network.ip}}' "$pod")
show() {
    "$crictl" pods
    "$crictl" ps
}
talk() {
    get "$ip" /hostname
    get "$ip" /healthz
}
run_exec() { "$crictl" exec "$container" sh -c 'id; hostname; ps | head -5'; }
step "status" show
step "HTTP on the pod's address" talk
step "logs" "$crictl" logs "$container"
step "exec" run_exec

hint "$up/crictl ps" "any command of crictl"
hint "$up/crictl exec -it $(cut -c1-13 <<<"$container") sh" "a shell in the container"
