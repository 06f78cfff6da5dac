#!/usr/bin/env python3
"""200 refreshes without a failure, asked for as fast as they come, while requests go on. Ends within about a minute.

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
            sys.exit(f"POST /token/refresh answered {asked}")
        answer = status(api)
        if answer != 200:
            sys.exit(f"a request through the proxy answered {answer}")
        successes, failures = refreshes(admin)
    print(f"oidc-provider: {successes} refreshes, {failures} failures", end=" … ", flush=True)
    sys.exit(successes < WANTED or failures > 0)


def refreshes(admin):
    """Calls of the issuer so far: those that brought a token, and all others."""
    metrics = urllib.request.urlopen(admin + "/metrics", timeout=10).read().decode()
    series = r'^bearer_proxy_token_refreshes_total\{credential="default",outcome="(\w+)"\} (\d+)$'
    calls = {outcome: int(count) for outcome, count in re.findall(series, metrics, re.M)}
    successes = calls.pop("success")
    return successes, sum(calls.values())


def status(url, method="GET"):
    """The status of the answer; None when there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


main(*sys.argv[1:])
