// SPDX-License-Identifier: GPL-2.0-only
/*
 * A PMU for a machine that has none, so that KVM's vPMU can be live in a VM.
 *
 * It registers a PMU of type PERF_TYPE_RAW whose events count nanoseconds while they are scheduled in (or, with
 * count_select, a number that a test knows), and makes perf_get_x86_pmu_capability() tell KVM that the host has
 * counters. KVM itself is unmodified: it creates, enables, pauses and releases real perf events.
 *
 * With `mediated` it says that it can be handed to guests (Linux 7.0 and later), so that KVM, loaded with
 * enable_mediated_pmu=1, makes VMs with a mediated vPMU: which VM gets one, and that perf refuses what would count
 * in them, is all KVM's and perf's own doing then. Only the registers that KVM would switch at every entry and exit
 * of a guest are not there, and so that switch is left out. On Intel, KVM also asks the CPU for full-width writes,
 * which Bochs's does not have, and so that question is answered here.
 *
 * What the PMU saw is in /proc/vpmu_test_pmu, one line per owner: the tests hold the agent's counts against these.
 * Not built: overflow interrupts (sampling events never overflow).
 */

#include <linux/atomic.h>
#include <linux/kprobes.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/perf_event.h>
#include <linux/proc_fs.h>
#include <linux/sched/clock.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/version.h>

#include <asm/perf_event.h>

#define PROC_NAME "vpmu_test_pmu"

/* What KVM is told about the host. AMD's vPMU looks at gp and width only, Intel's at all of it. */
static int version = 2;
static int gp = 6;
static int fixed;
static int width = 48;
static int events_mask_len;
module_param(version, int, 0444);
module_param(gp, int, 0444);
module_param(fixed, int, 0444);
module_param(width, int, 0444);
module_param(events_mask_len, int, 0444);
MODULE_PARM_DESC(version, "Architectural PMU version (Intel)");
MODULE_PARM_DESC(gp, "General-purpose counters");
MODULE_PARM_DESC(fixed, "Fixed counters (Intel)");
MODULE_PARM_DESC(width, "Bits of every counter");
MODULE_PARM_DESC(events_mask_len, "Architectural events described (Intel)");

static ulong perf_capabilities;
module_param(perf_capabilities, ulong, 0644);
MODULE_PARM_DESC(perf_capabilities,
		 "Bits of IA32_PERF_CAPABILITIES that new guests have, whatever KVM allows (Intel)");

#ifdef PERF_PMU_CAP_MEDIATED_VPMU
static bool mediated;
module_param(mediated, bool, 0444);
MODULE_PARM_DESC(mediated, "Let KVM give guests a mediated vPMU");
#endif

static uint room;
module_param(room, uint, 0644);
MODULE_PARM_DESC(room, "Events that fit on one CPU at a time, 0 for no limit");

static bool count_select;
module_param(count_select, bool, 0644);
MODULE_PARM_DESC(count_select, "An event that ran has counted its event select number, however long it ran");

static uint fail_errno;
static atomic_t fail_left = ATOMIC_INIT(0);
module_param(fail_errno, uint, 0644);
MODULE_PARM_DESC(fail_errno, "Fail KVM's event creation with this errno, 0 for never");

static int fail_after_set(const char *val, const struct kernel_param *kp)
{
	int n, ret = kstrtoint(val, 0, &n);

	if (!ret)
		atomic_set(&fail_left, n);
	return ret;
}

static int fail_after_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&fail_left));
}

static const struct kernel_param_ops fail_after_ops = { .set = fail_after_set, .get = fail_after_get };
module_param_cb(fail_after, &fail_after_ops, NULL, 0644);
MODULE_PARM_DESC(fail_after, "KVM's creations that still succeed before fail_errno applies; counts down");

/* Events of one process, KVM's and its own apart. Lives until the module goes: an event points to its owner. */
struct owner {
	struct list_head node;
	bool kvm;
	pid_t tgid;
	char comm[TASK_COMM_LEN];
	atomic_t initialised; /* event_init() succeeded */
	atomic_t destroyed;   /* event->destroy() called */
	atomic_t failed;      /* event_init() refused, as fail_errno asks */
	atomic_t added;       /* add() succeeded: on a CPU */
	atomic_t removed;     /* del() */
	atomic_t refused;     /* add() refused for lack of room */
};

static LIST_HEAD(owners);
static DEFINE_MUTEX(owners_lock);
static DEFINE_PER_CPU(uint, events_added);

/* By name, not by module: KVM may be built in. The context is what KVM passes for its pmc. */
static bool made_by_kvm(struct perf_event *event)
{
	char name[KSYM_SYMBOL_LEN];

	if (!event->overflow_handler || !event->overflow_handler_context)
		return false;
	snprintf(name, sizeof(name), "%ps", event->overflow_handler);
	return str_has_prefix(name, "kvm_perf_overflow");
}

static struct owner *owner_of_current(bool kvm)
{
	struct owner *owner;

	mutex_lock(&owners_lock);
	list_for_each_entry(owner, &owners, node)
		if (owner->tgid == current->tgid && owner->kvm == kvm)
			goto out;

	owner = kzalloc(sizeof(*owner), GFP_KERNEL);
	if (owner) {
		owner->kvm = kvm;
		owner->tgid = current->tgid;
		get_task_comm(owner->comm, current->group_leader);
		list_add_tail(&owner->node, &owners);
	}
out:
	mutex_unlock(&owners_lock);
	return owner;
}

static void test_pmu_destroy(struct perf_event *event)
{
	struct owner *owner = event->pmu_private;

	atomic_inc(&owner->destroyed);
}

static int test_pmu_event_init(struct perf_event *event)
{
	struct owner *owner;

	if (event->attr.type != PERF_TYPE_RAW && event->attr.type != PERF_TYPE_HARDWARE)
		return -ENOENT;

	owner = owner_of_current(made_by_kvm(event));
	if (!owner)
		return -ENOMEM;

	if (owner->kvm && READ_ONCE(fail_errno) && atomic_dec_if_positive(&fail_left) < 0) {
		atomic_inc(&owner->failed);
		return -(int)READ_ONCE(fail_errno);
	}

	event->pmu_private = owner;
	event->destroy = test_pmu_destroy;
	atomic_inc(&owner->initialised);
	return 0;
}

static void test_pmu_read(struct perf_event *event)
{
	u64 now = local_clock();
	u64 before = local64_xchg(&event->hw.prev_count, now);

	if (READ_ONCE(count_select))
		local64_set(&event->count, event->attr.config & ARCH_PERFMON_EVENTSEL_EVENT);
	else
		local64_add(now - before, &event->count);
}

static void test_pmu_start(struct perf_event *event, int flags)
{
	local64_set(&event->hw.prev_count, local_clock());
	event->hw.state = 0;
}

static void test_pmu_stop(struct perf_event *event, int flags)
{
	if (event->hw.state & PERF_HES_STOPPED)
		return;
	test_pmu_read(event);
	event->hw.state = PERF_HES_STOPPED | PERF_HES_UPTODATE;
}

/* add() and del() run with interrupts off on the CPU that they are for. */
static int test_pmu_add(struct perf_event *event, int flags)
{
	struct owner *owner = event->pmu_private;
	uint limit = READ_ONCE(room);

	if (limit && __this_cpu_read(events_added) >= limit) {
		atomic_inc(&owner->refused);
		return -EAGAIN;
	}
	__this_cpu_inc(events_added);
	atomic_inc(&owner->added);

	event->hw.state = PERF_HES_STOPPED | PERF_HES_UPTODATE;
	if (flags & PERF_EF_START)
		test_pmu_start(event, flags);
	return 0;
}

static void test_pmu_del(struct perf_event *event, int flags)
{
	struct owner *owner = event->pmu_private;

	test_pmu_stop(event, flags);
	__this_cpu_dec(events_added);
	atomic_inc(&owner->removed);
}

static struct pmu test_pmu = {
	.module = THIS_MODULE,
	.task_ctx_nr = perf_hw_context,
#ifdef PERF_PMU_CAP_HETEROGENEOUS_CPUS
	/* Before Linux 6.2 the first PMU has a task's hardware events until the next boot, also if it is unloaded. */
	.capabilities = PERF_PMU_CAP_HETEROGENEOUS_CPUS,
#endif
	.event_init = test_pmu_event_init,
	.add = test_pmu_add,
	.del = test_pmu_del,
	.start = test_pmu_start,
	.stop = test_pmu_stop,
	.read = test_pmu_read,
};

static void test_capability(struct x86_pmu_capability *cap)
{
	*cap = (struct x86_pmu_capability){
		.version = version,
		.num_counters_gp = gp,
		.num_counters_fixed = fixed,
		.bit_width_gp = width,
		.bit_width_fixed = width,
		.events_mask_len = events_mask_len,
#ifdef PERF_PMU_CAP_MEDIATED_VPMU
		.mediated = mediated,
#endif
	};
}
NOKPROBE_SYMBOL(test_capability);

static int capability_entry(struct kprobe *p, struct pt_regs *regs)
{
	instruction_pointer_set(regs, (unsigned long)test_capability);
	return 1;
}

/* Skylake's, for guests whose perf_capabilities say that they have such. */
static void test_lbr(struct x86_pmu_lbr *lbr)
{
	*lbr = (struct x86_pmu_lbr){ .nr = 32, .from = 0x680, .to = 0x6c0, .info = 0xdc0 };
}
NOKPROBE_SYMBOL(test_lbr);

static int lbr_entry(struct kprobe *p, struct pt_regs *regs)
{
	instruction_pointer_set(regs, (unsigned long)test_lbr);
	return 1;
}

/* Without a post_handler kprobes may optimize the probe into a jump, and then a changed ip is ignored. */
static void entry_done(struct kprobe *p, struct pt_regs *regs, unsigned long flags) {}

static struct kprobe capability_probe = {
	.symbol_name = "perf_get_x86_pmu_capability",
	.pre_handler = capability_entry,
	.post_handler = entry_done,
};

static struct kprobe lbr_probe = {
	.symbol_name = "x86_perf_get_lbr",
	.pre_handler = lbr_entry,
	.post_handler = entry_done,
};

/*
 * From Linux 6.14 on a guest has of its CPUID only what KVM knows of the host's, and an emulated host has no
 * PerfMonV2. Whoever asks for it gets it here.
 */
static int amd_refresh_entry(struct kprobe *p, struct pt_regs *regs)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)
	struct kvm_vcpu_arch *arch = &((struct kvm_vcpu *)regs->di)->arch;
	int i;

	for (i = 0; i < arch->cpuid_nent; i++) {
		struct kvm_cpuid_entry2 *leaf = &arch->cpuid_entries[i];

		if (leaf->function == 0x80000001)
			arch->cpu_caps[CPUID_8000_0001_ECX] |= leaf->ecx & BIT(X86_FEATURE_PERFCTR_CORE % 32);
		if (leaf->function == 0x80000022)
			arch->cpu_caps[CPUID_8000_0022_EAX] |= leaf->eax & BIT(0);
	}
#endif
	return 0;
}
NOKPROBE_SYMBOL(amd_refresh_entry);

static int intel_refresh_entry(struct kprobe *p, struct pt_regs *regs)
{
	struct kvm_vcpu *vcpu = (struct kvm_vcpu *)regs->di;

	vcpu->arch.perf_capabilities |= READ_ONCE(perf_capabilities);
	return 0;
}
NOKPROBE_SYMBOL(intel_refresh_entry);

#ifdef PERF_PMU_CAP_MEDIATED_VPMU
/* In place of what switches the registers: RDPMC alone would be the end of a host that has no counters. */
static void no_switch(void) {}
NOKPROBE_SYMBOL(no_switch);

static int switch_entry(struct kprobe *p, struct pt_regs *regs)
{
	if (!mediated)
		return 0;
	instruction_pointer_set(regs, (unsigned long)no_switch);
	return 1;
}

/* In place of what looks at the PMU's version, IA32_PERF_CAPABILITIES and VMX's controls. */
static bool supported(void)
{
	return true;
}
NOKPROBE_SYMBOL(supported);

static int supported_entry(struct kprobe *p, struct pt_regs *regs)
{
	if (!mediated)
		return 0;
	instruction_pointer_set(regs, (unsigned long)supported);
	return 1;
}
#endif

/* Probes of KVM's functions. It comes after this module, and may go and come again. */
static struct {
	const char *module;
	struct kprobe probe;
	bool registered;
} kvm_probes[] = {
	{ "kvm_amd", { .symbol_name = "amd_pmu_refresh", .pre_handler = amd_refresh_entry } },
	{ "kvm_intel", { .symbol_name = "intel_pmu_refresh", .pre_handler = intel_refresh_entry } },
#ifdef PERF_PMU_CAP_MEDIATED_VPMU
	{ "kvm",
	  { .symbol_name = "kvm_mediated_pmu_load",
	    .pre_handler = switch_entry,
	    .post_handler = entry_done } },
	{ "kvm",
	  { .symbol_name = "kvm_mediated_pmu_put",
	    .pre_handler = switch_entry,
	    .post_handler = entry_done } },
	{ "kvm_intel",
	  { .symbol_name = "intel_pmu_is_mediated_pmu_supported",
	    .pre_handler = supported_entry,
	    .post_handler = entry_done } },
#endif
};

static void probe_kvm(int i)
{
	struct kprobe *probe = &kvm_probes[i].probe;
	int ret;

	/* Of what the last module of this name left in it. */
	probe->addr = NULL;
	probe->flags = 0;
	ret = register_kprobe(probe);
	kvm_probes[i].registered = !ret;
	if (ret)
		pr_err("cannot probe %s: %d\n", probe->symbol_name, ret);
}

static void unprobe_kvm(int i)
{
	if (kvm_probes[i].registered)
		unregister_kprobe(&kvm_probes[i].probe);
	kvm_probes[i].registered = false;
}

static int module_changed(struct notifier_block *nb, unsigned long state, void *data)
{
	struct module *changed = data;
	int i;

	for (i = 0; i < ARRAY_SIZE(kvm_probes); i++) {
		if (strcmp(changed->name, kvm_probes[i].module))
			continue;
		/* Before its init function, which looks for a PMU. */
		if (state == MODULE_STATE_COMING)
			probe_kvm(i);
		else if (state == MODULE_STATE_GOING)
			unprobe_kvm(i);
	}
	return NOTIFY_DONE;
}

static struct notifier_block module_notifier = { .notifier_call = module_changed };

static int watch_kvm(void)
{
#ifdef PERF_PMU_CAP_MEDIATED_VPMU
	if (mediated)
		test_pmu.capabilities |= PERF_PMU_CAP_MEDIATED_VPMU;
#endif
	return register_module_notifier(&module_notifier);
}

static void unwatch_kvm(void)
{
	int i;

	unregister_module_notifier(&module_notifier);
	for (i = 0; i < ARRAY_SIZE(kvm_probes); i++)
		unprobe_kvm(i);
}
static int owners_show(struct seq_file *m, void *v)
{
	struct owner *o;

	seq_puts(m, "owner tgid initialised destroyed failed added removed refused comm\n");
	mutex_lock(&owners_lock);
	list_for_each_entry(o, &owners, node)
		seq_printf(m, "%s %d %d %d %d %d %d %d %s\n", o->kvm ? "kvm" : "perf", o->tgid,
			   atomic_read(&o->initialised), atomic_read(&o->destroyed), atomic_read(&o->failed),
			   atomic_read(&o->added), atomic_read(&o->removed), atomic_read(&o->refused),
			   o->comm);
	mutex_unlock(&owners_lock);
	return 0;
}

static int __init vpmu_test_pmu_init(void)
{
	int ret;

	if (!proc_create_single(PROC_NAME, 0444, NULL, owners_show))
		return -ENOMEM;

	ret = watch_kvm();
	if (ret)
		goto err_proc;

	ret = perf_pmu_register(&test_pmu, "cpu", PERF_TYPE_RAW);
	if (ret)
		goto err_kvm;

	ret = register_kprobe(&capability_probe);
	if (ret)
		goto err_pmu;

	ret = register_kprobe(&lbr_probe);
	if (ret)
		goto err_capability;
	return 0;

err_capability:
	unregister_kprobe(&capability_probe);
err_pmu:
	perf_pmu_unregister(&test_pmu);
err_kvm:
	unwatch_kvm();
err_proc:
	remove_proc_entry(PROC_NAME, NULL);
	return ret;
}

/* Cannot run while an event exists: perf holds a reference to the module for each. */
static void __exit vpmu_test_pmu_exit(void)
{
	struct owner *owner, *next;

	unwatch_kvm();
	unregister_kprobe(&lbr_probe);
	unregister_kprobe(&capability_probe);
	perf_pmu_unregister(&test_pmu);
	remove_proc_entry(PROC_NAME, NULL);
	list_for_each_entry_safe(owner, next, &owners, node)
		kfree(owner);
}

module_init(vpmu_test_pmu_init);
module_exit(vpmu_test_pmu_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A PMU for a machine without one, for vpmu-agent's lab");
