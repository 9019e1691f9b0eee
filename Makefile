# Every target does its own set-up: apt packages, then .venv, then what it is for.
SHELL := /bin/bash
PYTHON := .venv/bin/python

# What the agent runs with: bcc and libbpf, and the Python packages of the Debian package, so that the tests meet
# those versions and not only PyPI's newest.
PACKAGES := python3-bpfcc libbpf1 \
	python3-bcrypt python3-click python3-prometheus-client python3-psutil python3-urwid python3-yaml

# What the tests compile with, what makes the lab's root file systems, what virtme-ng boots them with.
PACKAGES += python3-venv curl openssl gcc libc6-dev make \
	mmdebstrap debian-archive-keyring \
	qemu-system-x86 udev kmod iproute2 procps zstd busybox-static file systemd

# What dashboards-check runs: prometheus and promtool.
PACKAGES += prometheus

# What builds the Debian package, as debian/control says, and looks at it.
DEB_PACKAGES := build-essential debhelper dh-python lintian pybuild-plugin-pyproject python3-build python3-setuptools

# What makes the container image, and runs it.
IMAGE_PACKAGES := mmdebstrap crun podman

# What the page is opened in.
PAGE_PACKAGES := chromium

# What draws docs/model.svg.
GENERATE_PACKAGES := graphviz

# What `make bench` measures the monitor against, and with.
BENCH_PACKAGES := bpftrace bpftool

.PHONY: demo demo-grouped test check lint format unit slow bpf verifier fuzz faults faults-slim lab lab-stock lab-service lab-grouped \
	lab-debian13 lab-matrix test-intel lab-kernel generate dashboards dashboards-check docs page recordings \
	deb deb-test image image-test image-lab rules bench clean

# Where the lab can choose, as in `make demo LAB_HOST=debian13 LAB_KERNEL=backports` (tests/lab/hosts.py).
TARGET := $(if $(LAB_HOST),--host $(LAB_HOST)) $(if $(LAB_KERNEL),--kernel $(LAB_KERNEL))

demo: .venv/ready
	$(PYTHON) -m tests.lab.demo $(TARGET)

# The same on a kernel whose KVM groups events; builds that kernel first, once.
demo-grouped: .venv/ready lab-kernel
	$(PYTHON) -m tests.lab.demo --kernel grouped

# The checks first, then all else two at a time, the longest first: a VM of the lab takes one processor. What
# several of them need is made before, for make begins one that waits after those that need not.
test: check .venv/page deb lab-kernel
	$(MAKE) --no-print-directory -j 2 MADE=1 lab-grouped lab-stock lab-service bpf lab-debian13 deb-test page \
		faults-slim dashboards-check

check: lint unit

# All of our C, but for the edits to the grouped kernel, which is built again when they change.
C_SOURCES := $(wildcard bpf/*.c bpf/*.h tests/bpf/*.c tests/lab/*.c tests/lab/vpmu_test_pmu/*.c)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/clang-format --dry-run -Werror $(C_SOURCES)

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(C_SOURCES)

unit: .venv/ready
	.venv/bin/pytest -q -n 2 tests/unit

bpf: .venv/ready
	$(call labelled,bpf,.venv/bin/pytest -q tests/bpf && $(PYTHON) -m tests.bpf.verifier)

# Every form of the BPF program, as the bcc of each host in the lab compiles it, by this machine's verifier and by
# that of each host's newest kernel, in a VM. Some five minutes.
verifier: .venv/ready lab-kernel
	$(PYTHON) -m tests.bpf.verifier --vm

# The same tests on Debian 12's kernel and on the one whose KVM groups events, the service on both; and a part of
# them on Debian 13 with the newest kernel that it has. Two VMs at a time, the longest first, for each takes one
# processor; before each line stands whose it is.
lab: deb lab-kernel
	$(MAKE) --no-print-directory -j 2 MADE=1 lab-grouped lab-stock lab-service lab-debian13

lab-stock: .venv/ready
	$(call lab,stock,-m 'not matrix')

lab-grouped: .venv/ready $(if $(MADE),,lab-kernel)
	$(call lab,grouped,--kernel grouped -m 'not matrix')

lab-debian13: .venv/ready
	$(call lab,debian13,--host debian13 --kernel backports -m slim)

# The same agent where KVM is kvm_intel, in Bochs: it emulates Intel's virtualization, and is slow. A mediated vPMU
# needs a newer kernel than the grouped one.
test-intel: .venv/ready lab-kernel
	$(call lab,intel,--machine bochs --kernel grouped -m 'not matrix')
	$(call lab,intel-mediated,--machine bochs --host debian13 --kernel backports tests/lab/test_mediated.py)

# All of the lab on all hosts and kernels; writes docs/kernels.md. An hour on two idle cores.
lab-matrix: .venv/ready deb lab-kernel
	$(PYTHON) -m tests.lab.matrix

# The Debian package under a real systemd, on both kernels: groups are what can diverge.
lab-service: .venv/ready $(if $(MADE),,deb lab-kernel)
	$(call lab,service,--systemd)
	$(call lab,service-grouped,--systemd --kernel grouped tests/lab/service/test_divergences.py)

# A quarter of an hour on two idle cores, then kept by a hash of its inputs outside of the tree.
lab-kernel: .venv/ready
	$(PYTHON) -m tests.lab.grouped.build

# More random programs than `unit` has time for.
slow: .venv/ready
	.venv/bin/pytest -q tests/unit -m slow --timeout 1800

# The BPF monitor against the Python check: a million random sequences, all that guests can do in four steps, and
# every fault in the way that usual calls take. Three quarters of an hour on two cores.
fuzz: .venv/ready
	$(PYTHON) -m tests.bpf.fuzz
	$(PYTHON) -m tests.bpf.fuzz --all 4
	.venv/bin/pytest -q tests/bpf/test_monitor.py -m slow

# Attacks on a running agent: hostile clients, unlucky operators, other people's files. Ends with a table of what was
# tried, survived and lost.
faults: .venv/ready
	.venv/bin/pytest -q tests/faults -m 'slow or not slow' --timeout 900

# The part of it that takes seconds.
faults-slim: .venv/ready
	$(call labelled,faults,.venv/bin/pytest -q tests/faults)

# Writes dashboards/*.json from tools/dashboards/.
dashboards: .venv/ready
	$(PYTHON) -m tools.dashboards.build

# Writes what is made from the model's rules: bpf/monitor.h, model/compiled_rules.py, docs/model.*.
generate: .venv/generate
	$(PYTHON) -m tools.generate

# Writes docs/metrics.md from the code that declares the metrics.
docs: .venv/ready
	$(PYTHON) -m tools.docs.metrics
	$(PYTHON) -m tools.docs.failures

# The rules' tests, and every query and rule against a real Prometheus that scrapes the real exporter; half a minute.
dashboards-check: .venv/ready
	$(call labelled,dashboards,.venv/bin/pytest -q tests/dashboards)

# The page at / in headless Chromium; leaves screenshots in build/page/ to look at. A minute.
page: .venv/page
	$(call labelled,page,.venv/bin/pytest -q tests/page)

# Records tests/data/ again from the lab's guests.
recordings: .venv/ready lab-kernel
	$(PYTHON) -m tests.lab.record
	$(PYTHON) -m tests.lab.record --kernel grouped
	$(PYTHON) -m tests.lab.record --host debian13
	$(PYTHON) -m tests.lab.record --machine bochs
	$(PYTHON) -m tests.lab.record --machine bochs --kernel grouped

# The Debian package, in dist/.
deb: .venv/deb
	rm -f dist/*.deb
	debian/build dist

# Installs it, and the wheel, in a minimal Debian 12 and 13, made once (a minute each) and kept outside of the tree.
deb-test: .venv/deb
	$(call labelled,deb-test,.venv/bin/pytest -v --timeout 600 tests/package)

# The container image, in dist/: of Debian 13's packages and our own; a minute, then seconds (packaging/README.md).
image: .venv/image deb
	$(PYTHON) -m tools.image dist/vpmu-agent_*_all.deb dist

# Its size, its labels and what is in it; it runs with the flags that packaging/ has, and without each of them.
image-test: .venv/image
	.venv/bin/pytest -v --timeout 600 tests/package/test_image.py tests/unit/project/test_packaging.py

# The image on a host without bcc, in the lab: real KVM, podman, and what the test PMU counted.
image-lab: image
	$(PYTHON) -m tests.lab.image.run dist/vpmu-agent-*.oci.tar

# Updates what is generated of the rules: the alerts' runbook addresses, packaging/kubernetes/prometheusrule.yml.
# `make rules RUNBOOKS=https://wiki.example.org/vpmu GRAFANA=https://grafana.example.org`, or one of the two, writes a
# copy to dist/rules/ whose alerts link there instead.
rules: .venv/ready
	$(PYTHON) -m tools.rules $(if $(RUNBOOKS),--runbooks '$(RUNBOOKS)') \
		$(if $(GRAFANA),--grafana '$(GRAFANA)') $(if $(RUNBOOKS)$(GRAFANA),--to dist/rules)

# What the monitor costs, held against its goals: some ten minutes, best on an idle machine.
bench: .venv/bench
	$(PYTHON) -m tests.bench

# Runs the lab's tests with the options $(2), and writes $(1) before each line of theirs.
define lab
$(call labelled,$(1),$(PYTHON) -m tests.lab.run -v $(2))
endef

# Runs $(2), and writes $(1) before each of its lines: others may run beside it.
define labelled
@set -o pipefail; { $(2); } 2>&1 | sed -u 's/^/$(1): /'
endef

# Installs the Debian packages in $(1) that are not there yet.
define install
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi
endef

.venv/ready: pyproject.toml Makefile
	@[ $$(id -u) != 0 ] || setpriv --reuid=65534 --regid=65534 --clear-groups test -r $(CURDIR)/Makefile || \
		{ echo "$(CURDIR) is not for every user to read, and the daemon that is tested runs as nobody:" \
			"move this tree, to /srv for example" >&2; exit 1; }
	$(call install,$(PACKAGES))
	/usr/bin/python3 -m venv --system-site-packages .venv
	.venv/bin/pip install -q -e '.[dev,dashboards]'
	@touch $@

.venv/deb: .venv/ready
	$(call install,$(DEB_PACKAGES))
	@touch $@

.venv/image: .venv/deb
	$(call install,$(IMAGE_PACKAGES))
	.venv/bin/pip install -q -e '.[image]'
	@touch $@

.venv/generate: .venv/ready
	$(call install,$(GENERATE_PACKAGES))
	@touch $@

.venv/page: .venv/ready
	$(call install,$(PAGE_PACKAGES))
	@touch $@

.venv/bench: .venv/ready
	$(call install,$(BENCH_PACKAGES))
	.venv/bin/pip install -q -e '.[bench]'
	@touch $@

clean:
	rm -rf .venv build dist .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
