// SPDX-License-Identifier: GPL-2.0-only
/*
 * Asks perf_event_create_kernel_counter() for events with a leader that they may have and with leaders that they
 * may not have. The module can be loaded if perf gave and refused what it should.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/perf_event.h>
#include <linux/sched/task.h>

static struct perf_event *create(int cpu, struct task_struct *task, struct perf_event *leader)
{
	/* Pinned, as all of KVM's events are. */
	struct perf_event_attr attr = {
		.type		= PERF_TYPE_SOFTWARE,
		.size		= sizeof(attr),
		.config		= PERF_COUNT_SW_DUMMY,
		.disabled	= 1,
		.pinned		= 1,
	};

	return perf_event_create_kernel_counter(&attr, cpu, task, leader, NULL, NULL);
}

static bool is_refused(const char *why, int cpu, struct task_struct *task, struct perf_event *leader)
{
	struct perf_event *event = create(cpu, task, leader);

	if (!IS_ERR(event))
		perf_event_release_kernel(event);
	else if (PTR_ERR(event) == -EINVAL)
		return true;
	pr_err("an event with a leader %s: %d, expected %d\n", why, PTR_ERR_OR_ZERO(event), -EINVAL);
	return false;
}

static int __init leader_check_init(void)
{
	struct pid *init = find_get_pid(1);
	struct task_struct *other = get_pid_task(init, PIDTYPE_PID);
	struct perf_event *leader = create(-1, current, NULL);
	struct perf_event *sibling;
	int ret = -EINVAL;

	put_pid(init);
	if (IS_ERR(leader) || !other) {
		pr_err("no leader or no other task\n");
		goto out;
	}
	sibling = create(-1, current, leader);
	if (IS_ERR(sibling) || sibling->group_leader != leader || leader->nr_siblings != 1) {
		pr_err("an event with a leader of the same task: %d\n", PTR_ERR_OR_ZERO(sibling));
		goto out_leader;
	}
	if (is_refused("that is a sibling itself", -1, current, sibling) &&
	    is_refused("of another task", -1, other, leader) &&
	    is_refused("of a task, for a CPU", 0, NULL, leader) &&
	    is_refused("on every CPU, for one CPU", 0, current, leader) &&
	    leader->nr_siblings == 1)
		ret = 0;
	perf_event_release_kernel(sibling);
out_leader:
	perf_event_release_kernel(leader);
out:
	if (other)
		put_task_struct(other);
	return ret;
}

static void __exit leader_check_exit(void)
{
}

module_init(leader_check_init);
module_exit(leader_check_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Checks group leaders of in-kernel perf events, for vpmu-agent's lab");
