// perf_event_create_kernel_counter() takes a group leader, so that the kernel can make groups of events too.
//
// The design needs this and leaves it to another patch of its series ("these events are created in a group
// manner, which are scheduled in the host perf as a group"). Nothing else has to learn about groups: once an event
// has a leader, add_event_to_ctx() puts it among the leader's siblings, as it does for perf_event_open().

@prototype@
typedef bool, perf_overflow_handler_t;
identifier attr, cpu, task, handler, context;
@@
 struct perf_event *perf_event_create_kernel_counter(struct perf_event_attr *attr, int cpu,
 				struct task_struct *task,
+				struct perf_event *group_leader,
 				perf_overflow_handler_t handler, void *context);

@definition@
typedef bool, perf_overflow_handler_t;
identifier attr, cpu, task, handler, context, ctx, event;
@@
+/*
+ * Whether @event may become a sibling of @leader in @ctx; ctx->mutex is held. The conditions are those of
+ * perf_event_open(), less two: a sibling may be pinned, as KVM's events are, and a software event must be in
+ * its leader's context from the start.
+ */
+static bool perf_kernel_event_may_join(struct perf_event *event, struct perf_event *leader,
+				       struct perf_event_context *ctx)
+{
+	lockdep_assert_held(&ctx->mutex);
+
+	return leader->group_leader == leader &&
+	       leader->ctx == ctx &&
+	       leader->cpu == event->cpu &&
+	       leader->clock == event->clock;
+}
+
 struct perf_event *perf_event_create_kernel_counter(struct perf_event_attr *attr, int cpu,
 				struct task_struct *task,
+				struct perf_event *group_leader,
 				perf_overflow_handler_t handler, void *context)
 {
 	...
-	event = perf_event_alloc(attr, cpu, task, NULL, NULL, handler, context, -1);
+	event = perf_event_alloc(attr, cpu, task, group_leader, NULL, handler, context, -1);
 	...
+	if (group_leader && !perf_kernel_event_may_join(event, group_leader, ctx)) {
+		err = -EINVAL;
+		goto err_unlock;
+	}
+
 	if (!exclusive_event_installable(event, ctx)) {
 		...
 	}
 	...
 }

@callers@
expression attr, cpu, task, handler, context;
@@
- perf_event_create_kernel_counter(attr, cpu, task, handler, context)
+ perf_event_create_kernel_counter(attr, cpu, task, NULL, handler, context)
