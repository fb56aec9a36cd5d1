# The part of hack/up --node-only: orlop-kubelet, and the pods of examples/node. Sourced.

manifests=/etc/orlop/manifests

kubelet_alive() {
    [ -s "$up/kubelet.pid" ] &&
        [ "$("$up/in-node" cat "/proc/$(cat "$up/kubelet.pid")/comm" 2>/dev/null)" = orlop-kubelet ]
}
kubelet_answers() {
    "$up/in-node" curl -fsS --max-time 5 http://127.0.0.1:10248/healthz >"$up/wait.log" 2>&1 &&
        "$up/orlop" pods >"$up/wait.log" 2>&1
}
give_up() {
    echo "hack/up: $1:" >&2
    cat "$up/wait.log" >&2
    echo "hack/up: the end of the kubelet's log:" >&2
    tail -n 30 "$up/kubelet.log" >&2
    exit 70
}
put() { # FILE: what is read becomes that file of the node, in one step, unless it is like that already
    "$up/in-node" sh -c '
        folder=$(dirname "$0") new=/etc/orlop/.$(basename "$0")
        mkdir -p "$folder" && cat >"$new"
        if cmp -s "$new" "$0"; then rm "$new"; else mv "$new" "$0"; fi' "$1"
}
start_kubelet() {
    if kubelet_alive; then
        echo "the kubelet runs already"
        return
    fi
    cat >"$up/orlop" <<EOC
#!/bin/sh
exec "$up/in-node" "$bin/orlop" "\$@"
EOC
    chmod +x "$up/orlop"
    put /etc/orlop/kubelet.yaml <<EOC
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: $manifests
containerRuntimeEndpoint: unix:///run/orlop/cri.sock
cgroupRoot: /$node_name
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
# However full this machine's disk is.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi}
EOC
    "$up/in-node" mkdir -p "$manifests"
    rm -f "$up/kubelet.pid" "$up/wait.log"
    # It ends with the node's PID namespace at the latest.
    setsid "$up/in-node" sh -c 'echo $$ >"$0" && exec "$@"' "$up/kubelet.pid" \
        "$bin/orlop-kubelet" --config /etc/orlop/kubelet.yaml </dev/null >>"$up/kubelet.log" 2>&1 &
    local process=$! limit=$((SECONDS + 60))
    until kubelet_answers; do
        kill -0 $process 2>/dev/null || give_up "the kubelet didn't start"
        [ $SECONDS -lt $limit ] || give_up "the kubelet doesn't answer"
        sleep 0.05
    done
    echo "orlop-kubelet runs static pods from $manifests"
}
step "kubelet" start_kubelet
note "node and daemons ready" "$(seconds "$node_begun")"
step "demo image" pull

declare -A shown=()
names=$(awk '/^kind:/ { pod = $2 == "Pod" } pod && /^  name:/ { print $2; pod = 0 }' examples/node/*.yaml)
show_changes() { # reads NAME READY STATUS; whether all of the examples' pods are ready
    local name ready status ok=0
    while read -r name ready status; do
        if [ "${shown[$name]:-}" != "$ready $status" ]; then
            shown[$name]="$ready $status"
            printf '%8s  %-10s %-5s %s\n' "$(seconds "$1")" "${name%-"$node_name"}" "$ready" "$status"
        fi
        [ "$status" = Running ] && [ "${ready%/*}" = "${ready#*/}" ] &&
            grep -qxF "${name%-"$node_name"}" <<<"$names" && ok=$((ok + 1))
    done
    [ $ok = "$(wc -w <<<"$names")" ]
}
run_examples() {
    local start file limit=$((SECONDS + 120))
    start=$(date +%s%N)
    for file in examples/node/*.yaml; do
        put "$manifests/$(basename "$file")" <"$file"
        echo "$file"
    done
    until show_changes "$start" < <("$up/orlop" pods 2>"$up/wait.log" | awk 'NR > 1 { print $2, $3, $4 }'); do
        if [ $SECONDS -ge $limit ]; then
            "$up/orlop" pods >>"$up/wait.log" 2>&1 || true
            give_up "the pods aren't ready"
        fi
        kubelet_alive || give_up "the kubelet has ended"
        sleep 0.05
    done
}
step "pods: from files to Ready" run_examples

pod_ip() { "$up/orlop" pods | awk -v name="$1-$node_name" '$2 == name { print $(NF - 1) }'; }
talk() {
    get "$(pod_ip web)" /
    get "$(pod_ip web)" /clock
    get "$(pod_ip hello)" /hostname
}
logs() {
    "$up/orlop" logs web -c clock
    # Later lines are mostly the probes.
    "$up/orlop" logs web -c web | awk 'NR <= 5'
}
run_exec() {
    "$up/orlop" exec web -c web -- sh -c 'id; hostname; cat /site/index.html'
    "$up/orlop" exec hello -- sh -c 'echo "$GREETING"; cat /etc/greeting/greeting.txt'
}
step "orlop pods" "$up/orlop" pods
step "HTTP on the pods' addresses" talk
step "orlop logs web" logs
step "orlop exec web, orlop exec hello" run_exec

hint "$up/orlop pods" "the pods; orlop describe|logs|exec|timeline POD looks closer"
hint "$up/orlop exec -it web -c web -- sh" "a shell in the web server's container"
hint "$up/orlop timeline web" "where the time of the pod's start went"
hint "$up/in-node sh -c 'cat >$manifests/mine.yaml' <mine.yaml" "a pod of your own; remove the file to end it"
hint "less $up/kubelet.log" "what the kubelet logs"
hint "$up/crictl ps" "the same pods, seen from the CRI daemon"
