"""Checks what stands in deploy/: the Kubernetes manifests, compose.yaml, the configurations in them,
and the Prometheus rules.

    manifests.py PROGRAM

Needs kubectl, promtool and redis-server in PATH, and the Python packages kubernetes-validate and
PyYAML. No cluster is used: kubectl only builds the manifests.
"""

import http.client
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
PROGRAM = pathlib.Path(sys.argv[1]).resolve()
NAMESPACE = "files"
# What Kubernetes has no schemas of.
FOREIGN = {"PodMonitor", "PrometheusRule"}
APP_GRACE = 30
# The labels that Prometheus adds to what it scrapes.
TARGET_LABELS = {"namespace", "pod", "app_kubernetes_io_component"}
passed = 0


def check(condition, text):
    global passed
    if not condition:
        sys.exit(f"failed: {text}")
    passed += 1


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, **options
    )
    return done.returncode, done.stdout + done.stderr


# --- The parts of the files


def build(folder):
    code, text = run("kubectl", "kustomize", KUBERNETES / folder)
    check(code == 0, f"kubectl kustomize {folder}: {text}")
    return list(yaml.safe_load_all(text))


def of_kind(resources, kind):
    return [one for one in resources if one["kind"] == kind]


def image_variables():
    """The variables that the image sets."""
    instruction = re.search(r"^ENV ((?:.*\\\n)*.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    return dict(pair.split("=", 1) for pair in instruction[1].replace("\\\n", " ").split())


def seconds(text):
    factors = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    parts = re.findall(r"([\d.]+)\s*(ms|s|m|h)", text)
    return sum(float(number) * factors[unit] for number, unit in parts)


def default(key):
    """The default of a key, as the shipped file documents it."""
    name = key.split(".")[1]
    return re.search(rf'^# {name} = "(.*)"$', section(key.split(".")[0]), re.M)[1]


def section(name):
    text = (ROOT / "proxy.toml").read_text()
    return re.search(rf"^\[{name}\]$(.*?)^\[[a-z]+\]$", text + "\n[end]\n", re.M | re.S)[1]


def grace(configuration):
    """How long a replica may take to end: what stands in deploy/ has to allow for it."""
    names = ["proxy.drain_delay", "proxy.drain_timeout", "token.timeout"]
    parts = [name.split(".") for name in names]
    values = [
        configuration.get(table, {}).get(key, default(name))
        for name, (table, key) in zip(names, parts)
    ]
    return sum(map(seconds, values)) + 5


# --- Configurations in use


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def materialise(folder, text, secrets):
    """Writes a configuration and its secrets as a container would have them."""
    (folder / "secrets").mkdir()
    (folder / "state").mkdir()
    for name, value in secrets.items():
        (folder / "secrets" / name).write_text(value)
    (folder / "proxy.toml").write_text(text.replace("/run/secrets", str(folder / "secrets")))


def environment(folder, *layers):
    variables = {}
    for layer in layers:
        variables |= layer
    check(variables["BEARER_PROXY_CONFIG"] == "/etc/bearer-proxy/proxy.toml", "the file's place")
    variables["BEARER_PROXY_CONFIG"] = str(folder / "proxy.toml")
    variables["BEARER_PROXY__TOKEN__STATE_FILE"] = str(folder / "state" / "token.json")
    return variables


def is_valid(variables, what):
    code, text = run(PROGRAM, "check", env=variables)
    check(code == 0, f"{what}: check: {text}")


def get(port, path, host):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def eventually(what, condition):
    end = time.monotonic() + 30
    while not condition():
        check(time.monotonic() < end, what)
        time.sleep(0.1)


class Process:
    def __init__(self, log, *command, **options):
        self.log = open(log, "w+")
        command = [str(part) for part in command]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def serves(folder, variables, hosts, what):
    """Starts the program as the container does, in front of a simulated cloud, with Redis as
    deploy/redis.conf configures it; other machines reach it by name and by address."""
    cloud, redis, data, admin = (free_port() for _ in range(4))
    secrets = {file.name: file.read_text().strip() for file in (folder / "secrets").iterdir()}
    # The same addresses with free ports.
    host, _ = variables["BEARER_PROXY__PROXY__LISTEN"].split(":")
    admin_host, _ = variables["BEARER_PROXY__ADMIN__LISTEN"].split(":")
    check(admin_host == "0.0.0.0", f"{what}: the admin endpoint listens on {admin_host}")
    more = {
        "BEARER_PROXY__UPSTREAM__ENDPOINTS": f"http://127.0.0.1:{cloud}",
        "BEARER_PROXY__TOKEN__CLIENT_ID": "demo",
        "BEARER_PROXY__PROXY__LISTEN": f"{host}:{data}",
        "BEARER_PROXY__ADMIN__LISTEN": f"{admin_host}:{admin}",
        "BEARER_PROXY__PROXY__DRAIN_DELAY": "0s",
    }
    if "store_password" in secrets:
        more["BEARER_PROXY__TOKEN__STORE__URL"] = f"redis://127.0.0.1:{redis}"
    conf = (DEPLOY / "redis.conf").read_text()
    check("dir /data\n" in conf, "redis.conf: the volume")
    (folder / "redis.conf").write_text(conf.replace("dir /data", f"dir {folder}"))
    simulate = [PROGRAM, "simulate", f"--listen=127.0.0.1:{cloud}", "--document-listen=127.0.0.1:0"]
    simulate.append(f"--refresh-token={secrets.get('refresh_token', 'unused')}")
    simulate.append(f"--client-secret={secrets['client_secret']}")
    with (
        Process(folder / "cloud", *simulate),
        Process(folder / "redis", "redis-server", folder / "redis.conf", "--port", redis,
                "--bind", "127.0.0.1"),
        Process(folder / "log", PROGRAM, env=variables | more),
    ):
        def log():
            return (folder / "log").read_text()
        # The kubelet and Prometheus use the address of the pod.
        eventually(f"{what}: not ready", lambda: get(admin, "/readyz", f"10.1.2.3:{admin}") == 200)
        check(get(admin, "/metrics", f"10.1.2.3:{admin}") == 200, f"{what}: metrics")
        check(get(admin, "/status", f"10.1.2.3:{admin}") == 401, f"{what}: status without a token")
        for host in hosts:
            status = get(data, "/api/echo.do", host)
            check(status == 200, f"{what}: {status} for {host}: {log()}")
        status = get(data, "/api/echo.do", "rebound.example.com")
        check(status == 421, f"{what}: {status} for a foreign name")
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=10) as response:
            return response.read().decode()


# --- Kubernetes


def kubernetes_versions():
    text = (ROOT / "docs" / "deploy.md").read_text()
    return re.search(r"Kubernetes (1\.\d+) to (1\.\d+)", text).groups()


def expand(value, variables):
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], value)


def variables_of(container):
    variables = {}
    for variable in container.get("env", []):
        if "value" in variable:
            variables[variable["name"]] = expand(variable["value"], variables)
        else:
            check(variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace", "a field")
            variables[variable["name"]] = NAMESPACE
    return variables


def is_hardened(pod, container, what):
    check(pod["automountServiceAccountToken"] is False, f"{what}: service account token")
    check(pod["enableServiceLinks"] is False, f"{what}: service links")
    security = pod["securityContext"]
    check(security["runAsNonRoot"] and security["runAsUser"] == 65532, f"{what}: user")
    check(security["seccompProfile"] == {"type": "RuntimeDefault"}, f"{what}: seccomp")
    security = container["securityContext"]
    check(security["readOnlyRootFilesystem"], f"{what}: root file system")
    check(security["allowPrivilegeEscalation"] is False, f"{what}: escalation")
    check(security["capabilities"] == {"drop": ["ALL"]}, f"{what}: capabilities")


def is_probed(container, what):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    check(ports["admin"] == 9180, f"{what}: admin port")
    live, ready = container["livenessProbe"], container["readinessProbe"]
    check(live["httpGet"] == {"path": "/healthz", "port": "admin"}, f"{what}: liveness")
    check(ready["httpGet"] == {"path": "/readyz", "port": "admin"}, f"{what}: readiness")
    check(ready["periodSeconds"] == 2, f"{what}: readiness period")


def check_deployment(folder, resources, temporary):
    [deployment] = of_kind(resources, "Deployment")
    [config] = of_kind(resources, "ConfigMap")
    [secret] = of_kind(resources, "Secret")
    pod = deployment["spec"]["template"]["spec"]
    containers = pod["containers"] + pod.get("initContainers", [])
    [container] = [one for one in containers if one["name"] == "bearer-proxy"]
    is_sidecar = container not in pod["containers"]
    check(is_sidecar == (folder == "sidecar"), f"{folder}: the kind of container")
    if is_sidecar:
        check(container["restartPolicy"] == "Always", "sidecar: restartPolicy")
    is_hardened(pod, container, folder)
    is_probed(container, folder)
    for port in container["ports"]:
        check(port["containerPort"] in (8080, 9180), f"{folder}: port {port}")
    strategy = deployment["spec"]["strategy"]
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    expected = {"type": "Recreate"} if folder == "single" else rolling
    check(strategy == expected, f"{folder}: strategy")

    text = config["data"]["proxy.toml"]
    configuration = tomllib.loads(text)
    delay = configuration["proxy"].get("drain_delay")
    check(delay == (None if is_sidecar else "10s"), f"{folder}: drain_delay")
    needed = grace(configuration) + (APP_GRACE if is_sidecar else 0)
    given = pod["terminationGracePeriodSeconds"]
    check(given == needed, f"{folder}: terminationGracePeriodSeconds is {given}, not {needed:.0f}")

    sources = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: sources[mount["name"]] for mount in container["volumeMounts"]}
    names = (config["metadata"]["name"], secret["metadata"]["name"])
    mounted = (
        mounts["/etc/bearer-proxy"]["configMap"]["name"],
        mounts["/run/secrets"]["secret"]["secretName"],
    )
    check(mounted == names, f"{folder}: mounts {mounted}, has {names}")
    check("/state" in mounts, f"{folder}: state")
    check("args" not in container, f"{folder}: args")

    secrets = dict.fromkeys(secret["stringData"], "")
    given_files = set(re.findall(r"/run/secrets/(\w+)", text))
    check(given_files == set(secrets), f"{folder}: secrets {given_files}, {set(secrets)}")
    trial = {file.name: file.read_text() for file in (DEPLOY / "secrets").iterdir()}
    secrets = {name: trial.get(name, f"a-{name}-of-16-characters") for name in secrets}
    place = pathlib.Path(temporary) / folder
    place.mkdir()
    materialise(place, text, secrets)
    variables = environment(place, image_variables(), variables_of(container))
    is_valid(variables, folder)
    service = ["bearer-proxy", f"bearer-proxy.{NAMESPACE}", f"bearer-proxy.{NAMESPACE}.svc",
               f"bearer-proxy.{NAMESPACE}.svc.cluster.local"]
    hosts = ["localhost"] if is_sidecar else [f"{name}:8080" for name in service]
    return serves(place, variables, hosts, folder)


def check_references(folder, resources):
    """Selectors select the pods, and what is named exists."""
    [deployment] = of_kind(resources, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selects = lambda selector: selector.items() <= labels.items()  # noqa: E731
    check(selects(deployment["spec"]["selector"]["matchLabels"]), f"{folder}: selector")
    for service in of_kind(resources, "Service"):
        check(selects(service["spec"]["selector"]), f"{folder}: service")
    for policy in of_kind(resources, "NetworkPolicy"):
        check(selects(policy["spec"]["podSelector"]["matchLabels"]), f"{folder}: policy")
        check(policy["spec"]["policyTypes"] == ["Ingress", "Egress"], f"{folder}: both ways")
        ports = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
        check((6379 in ports) == (folder == "gateway"), f"{folder}: egress to Redis")
    for budget in of_kind(resources, "PodDisruptionBudget"):
        check(selects(budget["spec"]["selector"]["matchLabels"]), f"{folder}: budget")
    for scaler in of_kind(resources, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        check(target["name"] == deployment["metadata"]["name"], f"{folder}: autoscaler")
        check("replicas" not in deployment["spec"], f"{folder}: replicas beside an autoscaler")
    [monitor] = of_kind(build("monitoring"), "PodMonitor")
    check(selects(monitor["spec"]["selector"]["matchLabels"]), f"{folder}: monitor")


def check_kubernetes(temporary):
    expected = {
        "gateway": {"ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy",
                    "PodDisruptionBudget", "Secret", "Service"},
        "sidecar": {"ConfigMap", "Deployment", "Secret"},
        "single": {"ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Secret",
                   "Service"},
        "monitoring": FOREIGN,
    }
    metrics = {}
    for folder, kinds in expected.items():
        resources = build(folder)
        check({one["kind"] for one in resources} == kinds, f"{folder}: kinds")
        for version in kubernetes_versions():
            for resource in resources:
                if resource["kind"] not in FOREIGN:
                    kubernetes_validate.validate(resource, version, strict=True)
                    check(True, "valid")
        if folder != "monitoring":
            check_references(folder, resources)
            metrics[folder] = check_deployment(folder, resources, temporary)
    used = {file.parent.name for file in KUBERNETES.glob("*/kustomization.yaml")}
    check(used == set(expected) | {"base"}, f"folders: {used}")
    return metrics["gateway"]


# --- Compose


def check_compose(temporary):
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        is_hardened = service["read_only"] and service["cap_drop"] == ["ALL"]
        check(is_hardened and service["security_opt"] == ["no-new-privileges:true"], name)
    for name, secret in compose["secrets"].items():
        check((DEPLOY / secret["file"]).is_file(), f"compose.yaml: the secret {name}")
    replicas = [name for name in services if name.startswith("proxy-")]
    check(len(replicas) == 3, "three replicas")
    balanced = re.findall(r"^  server (\S+) (\S+)$", (DEPLOY / "haproxy.cfg").read_text(), re.M)
    check(balanced == [(name, f"{name}:8080") for name in replicas], "haproxy.cfg: the replicas")
    text = (DEPLOY / "proxy.toml").read_text()
    configuration = tomllib.loads(text)
    clouds = [f"http://{name}:8400" for name in services if name.startswith("cloud-")]
    check(configuration["upstream"]["endpoints"] == clouds and len(clouds) == 2, "two clouds")
    address = services["haproxy"]["networks"]["default"]["ipv4_address"]
    check(configuration["proxy"]["trusted_networks"] == [address], "the address of HAProxy")
    for name in replicas:
        service = services[name]
        needed = f"{grace(configuration):.0f}s"
        check(service["stop_grace_period"] == needed, f"{name}: stop_grace_period, not {needed}")
        secrets = {one: (DEPLOY / "secrets" / one).read_text() for one in service["secrets"]}
        place = pathlib.Path(temporary) / f"compose-{name}"
        place.mkdir()
        materialise(place, text, secrets)
        variables = environment(place, image_variables(), service["environment"])
        is_valid(variables, f"compose.yaml, {name}")


def check_graces():
    """The other places that state how long the program may take to end."""
    needed = grace({})
    for file in ["Dockerfile", "docs/operations.md", "scripts/container"]:
        for given in re.findall(r"--stop-timeout (\d+)", (ROOT / file).read_text()):
            check(int(given) == needed, f"{file}: --stop-timeout {given}, not {needed:.0f}")
    unit = (ROOT / "packaging" / "bearer-proxy.service").read_text()
    given = re.search(r"^TimeoutStopSec=(.*)$", unit, re.M)[1]
    check(seconds(given) >= needed, f"bearer-proxy.service: {given} is less than {needed:.0f}s")


# --- Prometheus


def check_metrics(rules, metrics):
    """The program has the series that the rules read, with these labels."""
    series = re.findall(r"^(bearer_proxy_\w+)(?:\{(.*)\})? ", metrics, re.M)
    series = [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in series]
    for rule in rules:
        groups = re.findall(r"by \(([^)]*)\)", rule["expr"])
        needed = set(re.findall(r"\w+", " ".join(groups))) - TARGET_LABELS
        for name, selector in re.findall(r"(bearer_proxy_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            wanted = dict(re.findall(r'(\w+)="([^"]*)"', selector))
            wanted = {label: value for label, value in wanted.items() if label not in TARGET_LABELS}
            check(
                any(
                    name == one and needed <= set(labels) and wanted.items() <= labels.items()
                    for one, labels in series
                ),
                f"{rule['alert']}: /metrics has no {name} with {needed} and {wanted}",
            )


def check_rules(temporary, metrics):
    [rule] = of_kind(build("monitoring"), "PrometheusRule")
    place = pathlib.Path(temporary) / "rules"
    place.mkdir()
    (place / "rules.yaml").write_text(yaml.safe_dump(rule["spec"], width=1000))
    tests = (ROOT / "tests" / "deploy" / "rules.test.yaml").read_text()
    (place / "test.yaml").write_text(tests)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        code, text = run("promtool", *command, cwd=place)
        check(code == 0, f"promtool: {text}")
    rules = rule["spec"]["groups"][0]["rules"]
    fired = {
        one["alertname"]
        for test in yaml.safe_load(tests)["tests"]
        for one in test["alert_rule_test"]
        if one.get("exp_alerts")
    }
    check(fired == {one["alert"] for one in rules}, "a test for each rule")
    check_metrics(rules, metrics)


def main():
    assert PROGRAM.is_file(), f"{PROGRAM} does not exist"
    os.umask(0o077)
    with tempfile.TemporaryDirectory() as temporary:
        check_graces()
        check_compose(temporary)
        metrics = check_kubernetes(temporary)
        check_rules(temporary, metrics)
    print(f"deploy/: {passed} checks … ok")


main()
