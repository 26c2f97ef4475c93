"""A new operator's walk through docs/deployment.md and docs/adoption.md, on an empty Debian.

    python -m tests.system.deployment                    Debian 12
    python -m tests.system.deployment --suite trixie     another one
    python -m tests.system.deployment --base FOLDER      FOLDER is copied, and filled first where it isn't there

debootstrap makes the machine, systemd-nspawn boots it with systemd, slirp4netns is its network. Its
shell is given the guide's commands as they stand; REPOSITORY and YOUR.NAME are put in, and what is
asked is answered. Each command is printed, and the first that fails ends the walk. Then counts are
broken, alarmed and repaired, a backup is restored, the power is cut, and an older system is taken
over. Needs root and Debian or Ubuntu. All of it is gone at the end, also after Ctrl-C.

In place of what can't be had: pebble, from Debian, is the certificate authority; /etc/hosts has the
name; the code is that of this folder.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pexpect

from tests.support.servers import ServerError, _folder, _handled, _unwind

PROJECT = Path(__file__).resolve().parent.parent.parent
GUIDE = PROJECT / "docs" / "deployment.md"
ADOPTION = PROJECT / "docs" / "adoption.md"
NAME = "walk.example.net"
REPOSITORY = "/root/repository.git"
NEEDED = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "slirp4netns": "slirp4netns",
    "git": "git",
}
SLUGS = [f"walking-{number}" for number in range(12)]
BOOT_SECONDS = 60
LONGEST_COMMAND = 900  # seconds
# What the operator is asked on the way, and answers.
ASKED = {
    r"\[Y/n\] ": "y",
    r"Username[^\n]*: ": "admin",
    r"Email address: ": "admin@example.net",
    r"Password( \(again\))?: ": "Walked-as-written-7",
    r"Enter email address[^:]*: ": "admin@example.net",
    r"You\s+must\s+agree[^:]*: ": "y",
    r"\(Y\)es/\(N\)o: ": "n",
}
MIGRATION = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [("courses", "{last}")]
    operations = [migrations.AddField("course", "walked", models.BooleanField(db_default=False))]
"""
OLDER = """
INSERT INTO auth_user (id, username, password, first_name, last_name, email,
    is_staff, is_active, is_superuser, date_joined)
SELECT seq, CONCAT('student', seq), '!', '', '', '', 0, 1, 0, '2019-01-01' FROM seq_1_to_500;
CREATE TABLE core_course (id INT PRIMARY KEY, title VARCHAR(300), total_enrollments INT NULL);
INSERT INTO core_course SELECT seq, IF(seq = 7, ' ', CONCAT('Old ', seq)), CAST(seq AS SIGNED) - 9
FROM seq_1_to_40;
CREATE TABLE core_enrollments (
    id INT AUTO_INCREMENT PRIMARY KEY, student_id INT, course_id INT, status VARCHAR(20),
    created_at DATETIME NULL, KEY (course_id)
);
INSERT INTO core_enrollments (student_id, course_id, status, created_at)
SELECT seq * 7 % 520, seq * 11 % 43, ELT(seq % 5 + 1, 'active', 'Dropped', 'completed', '?', NULL),
    IF(seq % 9, '2020-01-01', NULL)
FROM seq_1_to_30000;
"""
ME = ("-c", "user.name=walk", "-c", "user.email=walk@example.net")
# A machine behind a proxy is walked on behind the same.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL")


class Machine:
    """A Debian of its own: processes, users, network, systemd."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._processes: list[subprocess.Popen[bytes]] = []

    def boot(self) -> None:
        nspawn = self._spawn(
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}"),
            *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
            *(f"--machine=walk-{os.getpid()}", "--resolv-conf=off", "--timezone=off"),
        )
        give_up = time.monotonic() + BOOT_SECONDS
        while not self._is_up(nspawn.pid):
            if nspawn.poll() is not None or time.monotonic() > give_up:
                said = (self.root.parent / "log").read_text(errors="replace").splitlines()
                raise ServerError(f"the machine didn't boot: {said[-1:]}")
            time.sleep(0.2)
        self._spawn(
            *("slirp4netns", "--configure", "--disable-host-loopback", str(self._leader), "tap0")
        )
        self.shell = Shell(["nsenter", "--target", str(self._leader), "--all", *SHELL])

    def cut_power(self) -> None:
        """End all of its processes at once."""
        with suppress(ProcessLookupError):
            os.kill(self._leader, signal.SIGKILL)
        for process in reversed(self._processes):
            process.terminate()
            process.wait(BOOT_SECONDS)
        self._processes.clear()

    @contextmanager
    def visitors(self) -> Iterator[Counter[str]]:
        """People who enroll and leave meanwhile; afterwards, what they were told."""
        told: Counter[str] = Counter()
        inside = ["nsenter", "--target", str(self._leader), "--net", sys.executable]
        with subprocess.Popen(
            [
                *inside,
                "-m",
                "tests.system.deployment_visitors",
                NAME,
                str(time.monotonic_ns()),
                *SLUGS,
            ],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise ServerError("the visitors could not sign up")
                yield told
                told.update(json.loads(process.communicate()[0]))
            finally:
                process.kill()

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.root.parent / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who then take it down
            )
        self._processes.append(process)
        return process

    def _is_up(self, nspawn: int) -> bool:
        # nspawn's only child when it has set all up is the machine's first process.
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        if len(children) != 1 or "systemd" not in Path(f"/proc/{children[0]}/comm").read_text():
            return False
        self._leader = int(children[0])
        ask = ["nsenter", "--target", children[0], "--all", "systemctl", "is-system-running"]
        return subprocess.run(ask, capture_output=True, text=True).stdout == "running\n"


SHELL = [
    *("env", "--ignore-environment", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    *(f"{name}={value}" for name in PASSED_ON if (value := os.environ.get(name))),
    *("bash", "--norc", "--noprofile", "--noediting"),
]


class Shell:
    """The operator's shell, on a terminal."""

    def __init__(self, command: list[str]) -> None:
        self._bash = pexpect.spawn(
            command[0], command[1:], echo=False, encoding="utf-8", timeout=LONGEST_COMMAND
        )
        self._bash.sendline("PS1='walked:$?> ' PS2= && set -o pipefail && cd")
        self._bash.expect(r"walked:0> ")

    def run(self, command: str) -> str:
        """Print a command, run it, and return what it said. Raises ServerError when it fails."""
        command = command.strip().replace("REPOSITORY", REPOSITORY).replace("YOUR.NAME", NAME)
        print("# " + command.replace("\n", "\n> "), flush=True)
        self._bash.sendline(command)
        said = ""
        while True:
            try:
                which = self._bash.expect([r"walked:(\d+)> ", *ASKED])
            except (pexpect.TIMEOUT, pexpect.EOF) as error:
                raise ServerError(f"no answer: {self._bash.before[-500:]}") from error
            said += self._bash.before
            if which == 0:
                break
            said += self._bash.after + "\n"
            self._bash.sendline(list(ASKED.values())[which - 1])
        said = re.sub(r"\r+\n", "\n", re.sub(r"\x1b(\[[\d;?]*[a-zA-Z]|[78])", "", said))
        lines = [line.split("\r")[-1].rstrip() for line in said.split("\n")]
        status = int(self._bash.match[1])
        shown = lines if status or len(lines) < 12 else ["…", *lines[-4:]]
        print("".join(f"    {line}\n" for line in shown if line), end="", flush=True)
        if status:
            raise ServerError(f"status {status} of: {command}")
        return "\n".join(lines)


def main() -> int:
    options = _options()
    if missing := [NEEDED[name] for name in NEEDED if shutil.which(name) is None]:
        print(f"walk: please install (Debian's names): {' '.join(missing)}", file=sys.stderr)
        return 2
    if os.geteuid():
        print("walk: it starts a machine, which only root may", file=sys.stderr)
        return 2
    ctrl_c = _handled(by=_unwind, instead_of=lambda it: it is signal.default_int_handler)
    try:
        with ctrl_c, _folder(name="walk") as folder:
            machine = Machine(_install(folder, options))
            try:
                machine.boot()
                walk(machine)
            finally:
                machine.cut_power()
    except ServerError as error:
        print(f"walk: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print("Walked to the end.")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="walk", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--base", type=Path)
    return parser.parse_args()


def _install(folder: Path, options: argparse.Namespace) -> Path:
    """An empty Debian in this folder, with the project's repository beside; return its root."""
    root, base = folder / "machine", options.base or folder / "base"
    if not base.exists():
        print(f"Installing {options.suite} …", flush=True)
        # Its own mounts: cut short, debootstrap leaves /proc and /sys.
        _do(
            *("unshare", "--mount", "debootstrap", "--include=ca-certificates,dbus"),
            *(options.suite, str(base), options.mirror),
        )
    _do("cp", "--archive", "--reflink=auto", str(base), str(root))
    (root / "etc/hostname").write_text("walk\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost walk {NAME}\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")  # slirp4netns
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(certificate, root / "usr/local/share/ca-certificates")
    _do("env", "--unset=TMPDIR", "chroot", str(root), "update-ca-certificates")
    _do("git", "init", "--quiet", "--bare", "--initial-branch=main", f"{root}{REPOSITORY}")
    _do("git", "push", "--quiet", f"{root}{REPOSITORY}", f"{_as_it_is(folder)}:refs/heads/main")
    return root


def _as_it_is(folder: Path) -> str:
    """A commit of the project with what is not committed yet; nothing here is changed."""
    git = ["env", f"GIT_INDEX_FILE={folder / 'index'}", "git", *ME]
    _do(*git, "add", "--all")
    tree = _do(*git, "write-tree").strip()
    return _do(*git, "commit-tree", tree, "-p", "HEAD", "-m", "As it is").strip()


def _do(*command: str, cwd: Path = PROJECT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ServerError(f"{' '.join(command)}: {said[-1:]}")
    return done.stdout


def walk(machine: Machine) -> None:
    steps = guide(GUIDE.read_text())
    assert steps, "no commands in the guide"
    for number, (title, block) in enumerate(steps):
        print(f"\n== {title}", flush=True)
        first = title != steps[number - 1][0]
        if title == "In containers":
            print("(not on this machine)")
        elif title == "Backups" and first:
            add_courses(machine.shell)
            under_load(machine, block)
        elif title == "Backups":
            restore = block.replace("2027-01-31", f"{datetime.now(UTC):%F}")
            follow(machine, restore)
        elif title == "Upgrades without stopping":
            publish_new_version(machine.root)
            # Again and again: a break, if there is one, is short.
            under_load(
                machine, block + "for n in 1 2 3 4; do sleep 3; systemctl reload catalog; done"
            )
            machine.shell.run("curl --silent https://YOUR.NAME/ | grep '<!-- new -->'")
        else:
            if title == "Certificate and nginx":
                certificate_authority(machine)
            follow(machine, block)
    print("\n== After the guide", flush=True)
    renewal(machine.shell)
    alarm(machine.shell)
    night(machine.shell)
    print("The backup is from before the upgrade:")
    follow(machine, restore)
    power_cut(machine)
    print("\n== Taking over an older system", flush=True)
    older_system(machine)
    for _, block in guide(ADOPTION.read_text()):
        follow(machine, block)
    machine.shell.run("! journalctl --no-pager | grep Traceback")


def guide(text: str) -> list[tuple[str, str]]:
    """The shell blocks, each with the heading or the step that it stands under."""
    pattern = r"^## (?P<heading>[^\n]+)|^\d+\. \*\*(?P<step>.+?)\*\*|^ *```sh\n(?P<block>.*?)^ *```"
    title, found = "", []
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if match["block"] is None:
            title = (match["heading"] or match["step"]).rstrip(".")
        else:
            found.append((title, match["block"]))
    return found


def follow(machine: Machine, block: str) -> None:
    command = ""
    for line in block.splitlines(keepends=True):
        command += line
        # A string or a bracket that is still open goes on in the next line.
        if not subprocess.run(["bash", "-n"], input=command.encode(), capture_output=True).stderr:
            machine.shell.run(command)
            command = ""


def under_load(machine: Machine, block: str) -> None:
    with machine.visitors() as told:
        time.sleep(2)
        follow(machine, block)
        time.sleep(5)
    print(f"Meanwhile visitors were told: {dict(told)}")
    if failed := set(told) - {"GET 200", "POST 302"}:
        raise ServerError(f"visitors were told {failed}")


def add_courses(shell: Shell) -> None:
    course = "Course(title=slug, slug=slug, capacity=2 if slug[-1] in '02468' else None)"
    code = f"Course.objects.bulk_create([{course} for slug in {SLUGS}])"
    shell.run(f'catalog shell --verbosity 0 --command "{code}"')


def publish_new_version(root: Path) -> None:
    """A release with a migration that adds a column, and with a page that shows that it is new."""
    folder = root.parent / "new"
    _do("git", "clone", "--quiet", f"{root}{REPOSITORY}", str(folder))
    base = folder / "project/templates/base.html"
    base.write_text(base.read_text().replace("</body>", "<!-- new --></body>"))
    migrations = folder / "courses/migrations"
    last = max(file.stem for file in migrations.glob("0*.py"))
    (migrations / "9000_walk.py").write_text(MIGRATION.format(last=last))
    _do("git", "add", ".", cwd=folder)
    _do("git", *ME, "commit", "--quiet", "--message=New", cwd=folder)
    _do("git", "push", "--quiet", "origin", "main", cwd=folder)


def certificate_authority(machine: Machine) -> None:
    """Let certbot ask a private authority, whom this machine trusts."""
    shell, folder = machine.shell, "/etc/pebble"
    shell.run("apt-get install --yes --quiet=2 pebble")
    config: dict[str, Any] = {
        **{"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000"},
        **{"certificate": f"{folder}/cert", "privateKey": f"{folder}/key"},
        **{"httpPort": 80, "tlsPort": 443},
    }
    (machine.root / folder[1:]).mkdir()
    (machine.root / folder[1:] / "config").write_text(json.dumps({"pebble": config}))
    shell.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 9 "
        f"-addext subjectAltName=DNS:localhost -keyout {folder}/key -out {folder}/cert 2> /dev/null"
    )
    trust = "/usr/local/share/ca-certificates"
    shell.run(f"cp {folder}/cert {trust}/pebble.crt && update-ca-certificates")
    shell.run(
        "systemd-run --quiet --unit=pebble "
        # It refuses and dawdles at random otherwise, to try its clients.
        "--setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 "
        f"pebble -strict=false -config {folder}/config"
    )
    shell.run(
        "curl --silent --show-error --retry 20 --retry-connrefused --retry-delay 1 "
        f"https://localhost:15000/roots/0 > {trust}/walk.crt && update-ca-certificates"
    )
    shell.run("echo server = https://localhost:14000/dir >> /etc/letsencrypt/cli.ini")


def renewal(shell: Shell) -> None:
    shell.run("certbot renew --force-renewal --no-random-sleep-on-renew")
    served = "openssl s_client -connect YOUR.NAME:443 < /dev/null 2> /dev/null"
    stored = "/etc/letsencrypt/live/YOUR.NAME/fullchain.pem"
    serial = "openssl x509 -noout -serial"
    shell.run(f'sleep 2; [ "$({served} | {serial})" = "$({serial} -in {stored})" ]')


def alarm(shell: Shell) -> None:
    """Ten drifts by an SQL client; the timer, at every tenth second here, finds them."""
    shell.run("curl --fail --silent https://YOUR.NAME/accounts/sign-in/ | grep '<h1>Sign in</h1>'")
    shell.run("catalog rebuild_counts --check")
    shell.run(
        'mariadb catalog -e "UPDATE courses_course SET total_enrollments = total_enrollments + 3 '
        'ORDER BY id LIMIT 10"'
    )
    shell.run("mkdir /run/systemd/system/catalog-check.timer.d")
    shell.run(
        "printf '[Timer]\\nOnCalendar=*:*:0/10\\nRandomizedDelaySec=0\\n' "
        "> /run/systemd/system/catalog-check.timer.d/walk.conf"
    )
    shell.run("systemctl daemon-reload && systemctl restart catalog-check.timer")
    failed = "systemctl --quiet is-failed catalog-check"
    shell.run(f"timeout 60 sh -c 'until {failed}; do sleep 1; done'")
    shell.run("systemctl stop catalog-check.timer && sleep 3")
    shell.run("systemctl --failed --plain --no-legend | grep catalog-check")
    shell.run("journalctl --unit catalog-check | grep '10 courses drifted, by 30 '")
    metrics = "curl --silent http://127.0.0.1:9100/metrics | grep ^courses_"
    shell.run(f"{metrics} | grep 'drifted 10$'")
    shell.run("catalog rebuild_counts | grep ' 10 drifted and corrected'")
    shell.run("catalog rebuild_counts --check")
    shell.run(f"systemctl start catalog-check && ! {failed}")
    shell.run(f"{metrics} | grep 'drifted 0$'")
    shell.run("systemctl start catalog-check.timer")


def night(shell: Shell) -> None:
    """The ledger's first run becomes too old to be kept."""
    shell.run(
        'mariadb catalog -e "UPDATE courses_countrun SET started_at = started_at - INTERVAL 401 '
        'DAY ORDER BY id LIMIT 1"'
    )
    shell.run("systemctl is-active catalog-prune.timer")
    shell.run("systemctl start catalog-prune.service")
    shell.run("journalctl --unit catalog-prune | grep 'Deleted from the ledger: runs 1,'")


def power_cut(machine: Machine) -> None:
    with machine.visitors():
        time.sleep(3)
        print("(the power is cut while visitors enroll, and comes back)", flush=True)
        machine.cut_power()
    machine.boot()
    retry = "--retry 30 --retry-all-errors --retry-delay 1"
    machine.shell.run(f"curl --fail --silent {retry} https://YOUR.NAME/readyz")
    machine.shell.run("catalog rebuild_counts --check")


def older_system(machine: Machine) -> None:
    """In place of the site's tables an older one's: wrong counts, and rows that are amiss."""
    shell = machine.shell
    shell.run("cd /srv/catalog && systemctl stop catalog.service catalog-check.timer")
    shell.run('mariadb -e "DROP DATABASE catalog; CREATE DATABASE catalog CHARACTER SET utf8mb4"')
    shell.run("catalog migrate auth --verbosity 0")
    (machine.root / "root/older.sql").write_text(OLDER)
    shell.run("mariadb catalog < /root/older.sql")


if __name__ == "__main__":
    sys.exit(main())
