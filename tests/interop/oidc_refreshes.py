#!/usr/bin/env python3
"""200 refreshes without a failure, as fast as the proxy allows, during requests. Ends within about a minute.

Usage: oidc_refreshes.py URL-THROUGH-THE-PROXY ADMIN-URL
"""

import re
import sys
import time
import urllib.error
import urllib.request

WANTED = 200
LIMIT_SECONDS = 60


def main(api, admin):
    deadline = time.monotonic() + LIMIT_SECONDS
    while status(admin + "/readyz") != 200:
        if time.monotonic() > deadline:
            sys.exit("the proxy does not become ready")
        time.sleep(0.1)
    successes, failures = refreshes(admin)
    while successes < WANTED and not failures and time.monotonic() < deadline:
        asked = status(admin + "/token/refresh", "POST")
        if asked not in (202, 429):
            sys.exit(f"POST /token/refresh: status {asked}")
        response = status(api)
        if response != 200:
            sys.exit(f"a request through the proxy: status {response}")
        successes, failures = refreshes(admin)
    print(f"oidc-provider: {successes} refreshes, {failures} failures", end=" … ", flush=True)
    sys.exit(successes < WANTED or failures > 0)


def refreshes(admin):
    """Calls to the issuer so far: the successful ones, and all others."""
    metrics = urllib.request.urlopen(admin + "/metrics", timeout=10).read().decode()
    series = r'^bearer_proxy_token_refreshes_total\{credential="default",outcome="(\w+)"\} (\d+)$'
    calls = {outcome: int(count) for outcome, count in re.findall(series, metrics, re.M)}
    successes = calls.pop("success")
    return successes, sum(calls.values())


def status(url, method="GET"):
    """The status of the response; None if there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


main(*sys.argv[1:])
