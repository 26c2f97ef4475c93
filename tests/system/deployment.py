"""Follow docs/deployment.md and docs/adoption.md on an empty Debian, as a new operator does.

debootstrap installs Debian, systemd-nspawn boots it, and slirp4netns connects it to the network.
The commands of the guides are typed into a shell as printed, with REPOSITORY and YOUR.NAME replaced
and prompts answered. The first command that fails ends the test. Then the test drifts counts until
the alarm, repairs them, restores a backup, cuts the power, and adopts the tables of an older
system. Needs root on Debian or Ubuntu. Everything is deleted at the end.

Pebble replaces Let's Encrypt, /etc/hosts replaces DNS, and the code is that of this folder.
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
from typing import NamedTuple

import pexpect

from tests.support.programs import Program, ServerError, find_program, require
from tests.support.servers import server_folder
from tests.support.signals import raise_on_signals

PROJECT = Path(__file__).resolve().parent.parent.parent

# What this test expects of the guides: their files, headings that need more than typing the
# commands, and text in the commands that must be replaced.
GUIDE = PROJECT / "docs" / "deployment.md"
ADOPTION = PROJECT / "docs" / "adoption.md"
CERTIFICATE = "Certificate and nginx"
BACKUPS = "Backups"  # the first block makes a backup, the second restores it
UPGRADES = "Upgrades without stopping"
CONTAINERS = "In containers"
EXAMPLE_DATE = "2027-01-31"
SERVER_NAME = "catalog.example.net"  # replaces YOUR.NAME
REPOSITORY = "/root/repository.git"  # replaces REPOSITORY

PROGRAMS = [
    Program(name=name, package=package, is_installed=lambda name=name: find_program(name))
    for name, package in {
        "debootstrap": "debootstrap",
        "systemd-nspawn": "systemd-container",
        "slirp4netns": "slirp4netns",
        "git": "git",
    }.items()
]
SLUGS = [f"deployment-{number}" for number in range(12)]
BOOT_SECONDS = 60
COMMAND_SECONDS = 900
GIT_IDENTITY = ("-c", "user.name=deployment", "-c", "user.email=deployment@example.net")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL")
# Prompts of the commands, and the operator's answers.
ANSWERS = {
    r"\[Y/n\] ": "y",
    r"Username[^\n]*: ": "admin",
    r"Email address: ": "admin@example.net",
    r"Password( \(again\))?: ": "Deployed-as-printed-7",
    r"Enter email address[^:]*: ": "admin@example.net",
    r"You\s+must\s+agree[^:]*: ": "y",
    r"\(Y\)es/\(N\)o: ": "n",
}
NEW_MIGRATION = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [("courses", "{last}")]
    operations = [migrations.AddField("course", "upgraded", models.BooleanField(db_default=False))]
"""
# Wrong counts, an empty title, unknown statuses, duplicates, and rows without a student or date.
OLD_TABLES = """
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


def main() -> int:
    options = _parse_arguments()
    try:
        require(PROGRAMS)
        if os.geteuid():
            raise ServerError("Only root can boot a machine. Run it with sudo.")
        with raise_on_signals(), server_folder(name="deployment") as folder:
            machine = Machine(_install_debian(folder, options))
            try:
                machine.boot()
                _follow_guides(machine)
            finally:
                machine.cut_power()
    except ServerError as error:
        print(f"test-deployment: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print("All commands of the guides succeeded.")
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="test-deployment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", default="bookworm", help="Debian's release; default: bookworm")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="install Debian there, or copy it from there if the folder exists",
    )
    return parser.parse_args()


# The machine -------------------------------------------------------------------------


def _install_debian(folder: Path, options: argparse.Namespace) -> Path:
    """Install an empty Debian with a copy of the project's repository; return its root folder."""
    root, base = folder / "machine", options.base or folder / "base"
    if not base.exists():
        print(f"Installing {options.suite} …", flush=True)
        # An interrupted debootstrap leaves /proc and /sys mounted, so give it its own mounts.
        _run(
            *("unshare", "--mount", "debootstrap", "--include=ca-certificates,dbus"),
            *(options.suite, str(base), options.mirror),
        )
    _run("cp", "--archive", "--reflink=auto", str(base), str(root))
    (root / "etc/hostname").write_text("catalog\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost catalog {SERVER_NAME}\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")  # slirp4netns
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(certificate, root / "usr/local/share/ca-certificates")
    _run("env", "--unset=TMPDIR", "chroot", str(root), "update-ca-certificates")
    _run("git", "init", "--quiet", "--bare", "--initial-branch=main", f"{root}{REPOSITORY}")
    commit = _commit_work_tree(folder)
    _run("git", "push", "--quiet", f"{root}{REPOSITORY}", f"{commit}:refs/heads/main")
    return root


def _commit_work_tree(folder: Path) -> str:
    """Return a commit that includes uncommitted changes, without changing the index or branch."""
    git = ["env", f"GIT_INDEX_FILE={folder / 'index'}", "git", *GIT_IDENTITY]
    _run(*git, "add", "--all")
    tree = _run(*git, "write-tree").strip()
    return _run(*git, "commit-tree", tree, "-p", "HEAD", "-m", "Work tree").strip()


def _run(*command: str, cwd: Path = PROJECT) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        output = result.stderr.strip() or result.stdout.strip()
        raise ServerError(f"{' '.join(command)}: {output.rpartition(chr(10))[2]}")
    return result.stdout


class Machine:
    """A booted Debian with its own processes, users, network and systemd."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._processes: list[subprocess.Popen[bytes]] = []

    def boot(self) -> None:
        nspawn = self._spawn(
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}"),
            *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
            *(f"--machine=catalog-{os.getpid()}", "--resolv-conf=off", "--timezone=off"),
        )
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._has_booted(nspawn.pid):
            if nspawn.poll() is not None or time.monotonic() > deadline:
                output = (self.root.parent / "log").read_text(errors="replace").strip()
                raise ServerError(f"The machine did not boot: {output.rpartition(chr(10))[2]}")
            time.sleep(0.2)
        self._spawn(
            *("slirp4netns", "--configure", "--disable-host-loopback", str(self._init_pid), "tap0")
        )
        self.shell = Shell(["nsenter", "--target", str(self._init_pid), "--all", *BASH])

    def cut_power(self) -> None:
        """End all processes of the machine at once."""
        with suppress(ProcessLookupError, AttributeError):
            os.kill(self._init_pid, signal.SIGKILL)
        for process in reversed(self._processes):
            process.terminate()
            process.wait(BOOT_SECONDS)
        self._processes.clear()

    @contextmanager
    def visitors(self) -> Iterator[Counter[str]]:
        """Let visitors enroll and leave; afterwards the counter has their responses."""
        responses: Counter[str] = Counter()
        in_network = ["nsenter", "--target", str(self._init_pid), "--net", sys.executable]
        arguments = [SERVER_NAME, str(time.monotonic_ns()), *SLUGS]
        with subprocess.Popen(
            [*in_network, "-m", "tests.system.deployment_visitors", *arguments],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise ServerError("The visitors could not sign up.")
                yield responses
                responses.update(json.loads(process.communicate()[0]))
            finally:
                process.kill()

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.root.parent / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach only this process, which cleans up.
            )
        self._processes.append(process)
        return process

    def _has_booted(self, nspawn_pid: int) -> bool:
        # At the end of its set-up, nspawn's only child is the machine's systemd.
        children = Path(f"/proc/{nspawn_pid}/task/{nspawn_pid}/children").read_text().split()
        if len(children) != 1 or "systemd" not in Path(f"/proc/{children[0]}/comm").read_text():
            return False
        self._init_pid = int(children[0])
        command = ["nsenter", "--target", children[0], "--all", "systemctl", "is-system-running"]
        return subprocess.run(command, capture_output=True, text=True).stdout == "running\n"


BASH = [
    *("env", "--ignore-environment", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    *(f"{name}={value}" for name in PROXY_VARIABLES if (value := os.environ.get(name))),
    *("bash", "--norc", "--noprofile", "--noediting"),
]


class Shell:
    """The operator's shell, in a terminal."""

    def __init__(self, command: list[str]) -> None:
        self._bash = pexpect.spawn(
            command[0], command[1:], echo=False, encoding="utf-8", timeout=COMMAND_SECONDS
        )
        self._bash.sendline("PS1='status:$?> ' PS2= && set -o pipefail && cd")
        self._bash.expect(r"status:0> ")

    def run(self, command: str) -> None:
        """Run a command; print it and the end of its output. Raises ServerError if it fails."""
        command = command.strip()
        command = command.replace("REPOSITORY", REPOSITORY).replace("YOUR.NAME", SERVER_NAME)
        print("# " + command.replace("\n", "\n> "), flush=True)
        self._bash.sendline(command)
        lines = _terminal_lines(self._read_output())
        status = int(self._bash.match[1])
        shown = lines if status or len(lines) < 12 else ["…", *lines[-4:]]
        print("".join(f"    {line}\n" for line in shown if line), end="", flush=True)
        if status:
            raise ServerError(f"status {status} of: {command}")

    def _read_output(self) -> str:
        """Return the output up to the shell's prompt, and answer the command's own prompts."""
        output = ""
        while True:
            try:
                match = self._bash.expect([r"status:(\d+)> ", *ANSWERS])
            except (pexpect.TIMEOUT, pexpect.EOF) as error:
                raise ServerError(f"The command hangs: {self._bash.before[-500:]}") from error
            output += self._bash.before
            if match == 0:
                return output
            output += self._bash.after + "\n"
            self._bash.sendline(list(ANSWERS.values())[match - 1])


def _terminal_lines(output: str) -> list[str]:
    """Return the lines that a terminal shows: no escape sequences, and no overwritten text."""
    text = re.sub(r"\r+\n", "\n", re.sub(r"\x1b(\[[\d;?]*[a-zA-Z]|[78])", "", output))
    return [line.split("\r")[-1].rstrip() for line in text.split("\n")]


# The guides --------------------------------------------------------------------------


class Block(NamedTuple):
    title: str  # the heading, or the bold start of the numbered step
    commands: str


def _follow_guides(machine: Machine) -> None:
    blocks = _read_blocks(GUIDE)
    backup, restore = [block.commands for block in blocks if block.title == BACKUPS]
    restore = restore.replace(EXAMPLE_DATE, f"{datetime.now(UTC):%F}")
    for title, commands in blocks:
        print(f"\n== {title}", flush=True)
        if title == CONTAINERS:
            print("(skipped)")
        elif commands == backup:
            _create_courses(machine.shell)
            _open_sign_up(machine.shell)
            _run_under_load(machine, commands)
        elif title == BACKUPS:
            _run_commands(machine, restore)
        elif title == UPGRADES:
            _publish_new_version(machine.root)
            # A single reload may be too short to show a failed request.
            reloads = "for n in 1 2 3 4; do sleep 3; systemctl reload catalog; done"
            restart = "sleep 3; systemctl restart catalog"
            _run_under_load(machine, f"{commands}{reloads}; {restart}")
            machine.shell.run("curl --silent https://YOUR.NAME/ | grep '<!-- new -->'")
        else:
            if title == CERTIFICATE:
                _start_certificate_authority(machine)
            _run_commands(machine, commands)
    print("\n== After the guide", flush=True)
    _renew_certificate(machine.shell)
    _alarm_and_repair(machine.shell)
    _prune(machine.shell)
    _reject_local_users(machine.shell)
    print("Restoring the backup, which was made before the upgrade:")
    _run_commands(machine, restore)
    _survive_power_cut(machine)
    print(f"\n== {ADOPTION.name}", flush=True)
    _create_old_tables(machine)
    for block in _read_blocks(ADOPTION):
        _run_commands(machine, block.commands)
    machine.shell.run("! journalctl --no-pager | grep Traceback")


def _read_blocks(guide: Path) -> list[Block]:
    """Return the guide's shell commands."""
    pattern = r"^## (?P<heading>[^\n]+)|^\d+\. \*\*(?P<step>.+?)\*\*|^ *```sh\n(?P<block>.*?)^ *```"
    title, blocks = "", []
    for match in re.finditer(pattern, guide.read_text(), re.MULTILINE | re.DOTALL):
        if match["block"] is None:
            title = (match["heading"] or match["step"]).rstrip(".")
        else:
            blocks.append(Block(title, match["block"]))
    assert blocks, f"{guide} has no commands"
    return blocks


def _run_commands(machine: Machine, commands: str) -> None:
    command = ""
    for line in commands.splitlines(keepends=True):
        command += line
        # A command with an open quote or bracket continues on the next line.
        if not subprocess.run(["bash", "-n"], input=command.encode(), capture_output=True).stderr:
            machine.shell.run(command)
            command = ""


def _run_under_load(machine: Machine, commands: str) -> None:
    """Run the commands while visitors read and enroll. Raises ServerError if a request fails."""
    with machine.visitors() as responses:
        time.sleep(2)
        _run_commands(machine, commands)
        time.sleep(5)
    print(f"Responses to the visitors: {dict(responses)}")
    if failed := set(responses) - {"GET 200", "POST 302"}:
        raise ServerError(f"Visitors got {failed}.")


# What the guides leave to the operator -----------------------------------------------


def _create_courses(shell: Shell) -> None:
    course = "Course(title=slug, slug=slug, capacity=2 if slug[-1] in '02468' else None)"
    code = f"Course.objects.bulk_create([{course} for slug in {SLUGS}])"
    shell.run(f'catalog shell --verbosity 0 --command "{code}"')


def _open_sign_up(shell: Shell) -> None:
    shell.run("sed -i 's/^#SIGN_UP/SIGN_UP/' /etc/catalog.env && systemctl restart catalog")


def _publish_new_version(root: Path) -> None:
    """Push a version with a migration that adds a column and a page that differs."""
    folder = root.parent / "new"
    _run("git", "clone", "--quiet", f"{root}{REPOSITORY}", str(folder))
    base = folder / "project/templates/base.html"
    base.write_text(base.read_text().replace("</body>", "<!-- new --></body>"))
    migrations = folder / "courses/migrations"
    last = max(file.stem for file in migrations.glob("0*.py"))
    (migrations / "9000_upgraded.py").write_text(NEW_MIGRATION.format(last=last))
    _run("git", "add", ".", cwd=folder)
    _run("git", *GIT_IDENTITY, "commit", "--quiet", "--message=New version", cwd=folder)
    _run("git", "push", "--quiet", "origin", "main", cwd=folder)


def _start_certificate_authority(machine: Machine) -> None:
    """Start Pebble, trust its certificates, and make certbot use it."""
    shell, folder = machine.shell, "/etc/pebble"
    shell.run("apt-get install --yes --quiet=2 pebble")
    config = {
        "listenAddress": "127.0.0.1:14000",
        "managementListenAddress": "127.0.0.1:15000",
        "certificate": f"{folder}/cert",
        "privateKey": f"{folder}/key",
        "httpPort": 80,
        "tlsPort": 443,
    }
    (machine.root / folder[1:]).mkdir()
    (machine.root / folder[1:] / "config").write_text(json.dumps({"pebble": config}))
    shell.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 9 "
        f"-addext subjectAltName=DNS:localhost -keyout {folder}/key -out {folder}/cert 2> /dev/null"
    )
    trusted = "/usr/local/share/ca-certificates"
    shell.run(f"cp {folder}/cert {trusted}/pebble.crt && update-ca-certificates")
    shell.run(
        "systemd-run --quiet --unit=pebble "
        # By default Pebble sleeps and rejects requests at random, to test clients.
        "--setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 "
        f"pebble -strict=false -config {folder}/config"
    )
    shell.run(
        "curl --silent --show-error --retry 20 --retry-connrefused --retry-delay 1 "
        f"https://localhost:15000/roots/0 > {trusted}/issuer.crt && update-ca-certificates"
    )
    shell.run("echo server = https://localhost:14000/dir >> /etc/letsencrypt/cli.ini")


# After the guide ---------------------------------------------------------------------


def _renew_certificate(shell: Shell) -> None:
    shell.run("certbot renew --force-renewal --no-random-sleep-on-renew")
    served = "openssl s_client -connect YOUR.NAME:443 < /dev/null 2> /dev/null"
    stored = "/etc/letsencrypt/live/YOUR.NAME/fullchain.pem"
    serial = "openssl x509 -noout -serial"
    shell.run(f'sleep 2; [ "$({served} | {serial})" = "$({serial} -in {stored})" ]')


def _alarm_and_repair(shell: Shell) -> None:
    """Let ten courses drift, wait until the timer's check fails, and correct them."""
    shell.run("curl --fail --silent https://YOUR.NAME/accounts/sign-in/ | grep '<h1>Sign in</h1>'")
    shell.run("catalog rebuild_counts --check")
    shell.run(
        'mariadb catalog -e "UPDATE courses_course SET total_enrollments = total_enrollments + 3 '
        'ORDER BY id LIMIT 10"'
    )
    # Every ten seconds instead of every ten minutes.
    shell.run("mkdir /run/systemd/system/catalog-check.timer.d")
    shell.run(
        "printf '[Timer]\\nOnCalendar=*:*:0/10\\nRandomizedDelaySec=0\\n' "
        "> /run/systemd/system/catalog-check.timer.d/test.conf"
    )
    shell.run("systemctl daemon-reload && systemctl restart catalog-check.timer")
    has_failed = "systemctl --quiet is-failed catalog-check"
    shell.run(f"timeout 60 sh -c 'until {has_failed}; do sleep 1; done'")
    shell.run("systemctl stop catalog-check.timer && sleep 3")
    shell.run("systemctl --failed --plain --no-legend | grep catalog-check")
    shell.run("journalctl --unit catalog-check | grep '10 drifted, by 30'")
    metrics = "curl --silent http://127.0.0.1:9100/metrics | grep ^courses_"
    shell.run(f"{metrics} | grep 'drifted 10$'")
    shell.run('[ "$(catalog rebuild_counts --json | wc -l)" = 10 ]')
    shell.run("catalog rebuild_counts --check")
    shell.run(f"systemctl start catalog-check && ! {has_failed}")
    shell.run(f"{metrics} | grep 'drifted 0$'")
    shell.run("systemctl start catalog-check.timer")


def _prune(shell: Shell) -> None:
    """Make one run old enough to be deleted, and run the service of the night."""
    run_sql = "mariadb --skip-column-names catalog --execute"
    shell.run(
        f'{run_sql} "UPDATE courses_countrun SET started_at = started_at - INTERVAL 401 DAY '
        'ORDER BY id LIMIT 1"'
    )
    old_runs = "SELECT id FROM courses_countrun WHERE started_at < NOW() - INTERVAL 400 DAY"
    shell.run("systemctl is-active catalog-prune.timer")
    shell.run("systemctl start catalog-prune.service")
    shell.run(f'[ -z "$({run_sql} "{old_runs}")" ]')


def _reject_local_users(shell: Shell) -> None:
    """Only nginx reaches gunicorn, and only the site reads and writes the cache."""
    curl = "curl --silent --unix-socket /run/catalog.sock http://localhost/readyz"
    shell.run(f'runuser -u www-data -- {curl} | grep \'"redis": "ok"\'')
    shell.run(f"! runuser -u nobody -- {curl}")
    shell.run("! curl --silent http://127.0.0.1:8000/healthz")
    shell.run("redis-cli ping 2>&1 | grep NOAUTH")


def _survive_power_cut(machine: Machine) -> None:
    with machine.visitors():
        time.sleep(3)
        print("(cutting the power while visitors enroll, and booting again)", flush=True)
        machine.cut_power()
    machine.boot()
    retry = "--retry 30 --retry-all-errors --retry-delay 1"
    machine.shell.run(f"curl --fail --silent {retry} https://YOUR.NAME/readyz")
    machine.shell.run("catalog rebuild_counts --check")


def _create_old_tables(machine: Machine) -> None:
    """Replace the site's tables by those of an older system."""
    shell = machine.shell
    shell.run(
        "cd /srv/catalog && systemctl stop catalog.socket catalog.service catalog-check.timer"
    )
    shell.run('mariadb -e "DROP DATABASE catalog; CREATE DATABASE catalog CHARACTER SET utf8mb4"')
    shell.run("catalog migrate auth --verbosity 0")
    (machine.root / "root/old_tables.sql").write_text(OLD_TABLES)
    shell.run("mariadb catalog < /root/old_tables.sql")


if __name__ == "__main__":
    sys.exit(main())
