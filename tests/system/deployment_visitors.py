"""Visitors of deployment.py, who read, enroll and leave over HTTPS until standard input ends.

    python -m tests.system.deployment_visitors SERVER_NAME SEED SLUG…

Prints "ready" when all have signed up, and at the end the number of each response as JSON.
"""

import json
import random
import sys
import threading
from collections import Counter

import requests
import urllib3

from tests.support.servers import HOST

VISITORS = 4
PASSWORD = "only for the deployment test"


class Visitor:
    def __init__(self, server_name: str, number: str) -> None:
        self._session = requests.Session()
        # This process does not have the machine's /etc/hosts and trusted certificates. curl on the
        # machine verifies the certificate.
        self._session.verify = self._session.trust_env = False
        self._session.headers.update({"Host": server_name, "Referer": f"https://{server_name}/"})
        self._username = f"visitor-{number}"
        self._random = random.Random(number)
        self.responses: Counter[str] = Counter()

    def sign_up(self) -> None:
        self._request("GET", "/accounts/sign-up/")
        form = {"username": self._username, "password1": PASSWORD, "password2": PASSWORD}
        self._request("POST", "/accounts/sign-up/", **form)

    def visit(self, finished: threading.Event, slugs: list[str]) -> None:
        while not finished.is_set():
            slug = self._random.choice(slugs)
            self._request("GET", "/")
            self._request("POST", f"/courses/{slug}/{self._random.choice(['enroll', 'leave'])}/")

    def _request(self, method: str, path: str, **form: str) -> None:
        form["csrfmiddlewaretoken"] = self._session.cookies.get("csrftoken", "")
        try:
            response = self._session.request(
                method,
                f"https://{HOST}{path}",
                data=form if method == "POST" else None,
                allow_redirects=False,
                timeout=60,
            )
            self.responses[f"{method} {response.status_code}"] += 1
        except requests.RequestException as error:
            self.responses[f"{method} {type(error).__name__}"] += 1


def main() -> None:
    urllib3.disable_warnings()
    _, server_name, seed, *slugs = sys.argv
    visitors = [Visitor(server_name, f"{seed}-{number}") for number in range(VISITORS)]
    for visitor in visitors:
        visitor.sign_up()
        if visitor.responses != {"GET 200": 1, "POST 302": 1}:
            sys.exit(f"A visitor could not sign up: {dict(visitor.responses)}")
    finished = threading.Event()
    threads = [threading.Thread(target=each.visit, args=[finished, slugs]) for each in visitors]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    finished.set()
    for thread in threads:
        thread.join()
    print(json.dumps(sum((each.responses for each in visitors), Counter())))


if __name__ == "__main__":
    main()
