"""The visitors of walk.py: they read, enroll and leave over https until standard input ends.

    python -m tests.system.deployment_visitors NAME SEED SLUG…

Says "ready" when all have signed up; at the end what they were told, as JSON.
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
PASSWORD = "only for the walk"


class Visitor:
    def __init__(self, name: str, number: str) -> None:
        self._session = requests.Session()
        # Our files know neither the machine's name nor its authority: curl in it looks at them.
        self._session.verify = self._session.trust_env = False
        self._session.headers.update({"Host": name, "Referer": f"https://{name}/"})
        self._username = f"visitor-{number}"
        self._rng = random.Random(number)
        self.told: Counter[str] = Counter()

    def sign_up(self) -> None:
        self._ask("GET", "/accounts/sign-up/")
        form = {"username": self._username, "password1": PASSWORD, "password2": PASSWORD}
        self._ask("POST", "/accounts/sign-up/", **form)

    def visit(self, ended: threading.Event, slugs: list[str]) -> None:
        while not ended.is_set():
            slug = self._rng.choice(slugs)
            self._ask("GET", "/")
            self._ask("POST", f"/courses/{slug}/{self._rng.choice(['enroll', 'leave'])}/")

    def _ask(self, method: str, path: str, **form: str) -> None:
        try:
            form["csrfmiddlewaretoken"] = self._session.cookies.get("csrftoken", "")
            answer = self._session.request(
                method,
                f"https://{HOST}{path}",
                data=form if method == "POST" else None,
                allow_redirects=False,
                timeout=60,
            )
            self.told[f"{method} {answer.status_code}"] += 1
        except requests.RequestException as error:
            self.told[f"{method} {type(error).__name__}"] += 1


def main() -> None:
    urllib3.disable_warnings()
    _, name, seed, *slugs = sys.argv
    visitors = [Visitor(name, f"{seed}-{number}") for number in range(VISITORS)]
    for visitor in visitors:
        visitor.sign_up()
        if visitor.told != {"GET 200": 1, "POST 302": 1}:
            sys.exit(f"walk_visitors: signing up, one was told {dict(visitor.told)}")
    ended = threading.Event()
    threads = [threading.Thread(target=each.visit, args=[ended, slugs]) for each in visitors]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps(sum((each.told for each in visitors), Counter())))


if __name__ == "__main__":
    main()
