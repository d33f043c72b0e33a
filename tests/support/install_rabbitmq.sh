#!/bin/sh
# Sees to it that a RabbitMQ server is installed on this machine; the tests start private nodes of it. And
# librabbitmq's command-line tools, which are clients that nobody here wrote, and Prometheus' promtool.
#
# Debian's packages start their services at once, RabbitMQ on port 5672, Prometheus on 9090. Nobody here wants
# those, and they would stand in the way of what the owner of the machine runs, so no service is started.
set -eu

wanted=
# The second folder is Debian's own, and not on anybody's PATH.
PATH="$PATH:/usr/lib/rabbitmq/bin" command -v rabbitmq-server >/dev/null || wanted=rabbitmq-server
command -v amqp-publish >/dev/null || wanted="$wanted amqp-tools"
command -v promtool >/dev/null || wanted="$wanted prometheus"
[ -n "$wanted" ] || exit 0

missing() {
  case $wanted in rabbitmq-server*) ;; *)
    # Only a few tests need the others, and say so themselves.
    echo "Not installed here, and some tests need it:$wanted (amqp-publish and its kin, promtool): $1." >&2
    exit 0
  esac
  cat >&2 <<HELP
RabbitMQ is not installed here, and the tests need its server (3.10 or newer): $1.
Install it so that rabbitmq-server and rabbitmqctl are on PATH, and do not start it:
  Debian, Ubuntu   sudo make rabbitmq
  Fedora           sudo dnf install rabbitmq-server librabbitmq-tools golang-github-prometheus
  macOS            brew install rabbitmq rabbitmq-c prometheus, and add \$(brew --prefix)/sbin to PATH
  elsewhere        https://www.rabbitmq.com/docs/download
HELP
  exit 1
}

command -v apt-get >/dev/null || missing "without apt-get it cannot be installed from here"
[ "$(id -u)" -eq 0 ] || missing "apt-get needs root"

work=$(mktemp -d)
policy=/usr/sbin/policy-rc.d # asked by Debian before any service is started; 101 means no
restore() {
  rm -f "$policy"
  if [ -e "$work/policy" ] || [ -L "$work/policy" ]; then mv "$work/policy" "$policy"; fi
  rm -rf "$work"
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$work/policy"; fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

quietly() { # the output is worth reading only when something went wrong
  "$@" >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; missing "'$*' failed"; }
}
export DEBIAN_FRONTEND=noninteractive
# Somebody else's apt may hold the lock for a moment.
quietly apt-get -q -o DPkg::Lock::Timeout=300 update
# shellcheck disable=SC2086  # one word for each package
quietly apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $wanted
for package in $wanted; do
  echo "Installed $package $(dpkg-query -W -f '${Version}' "$package"); no service was started."
done
