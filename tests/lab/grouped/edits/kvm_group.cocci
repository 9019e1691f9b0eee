// KVM makes, stops and releases the N = max_nr_events events of a counter as one group.

// "centrally created and then enabled in order": the first event is the leader of the others, and a group stands
// still until it is whole. When event i cannot be made, events 0..i-1 stay as they are: nothing enables them,
// is_paused and intr keep their old values, and they go with the next release.
//
// A counter of one event is still created enabled, which saves a call. Debian's function returns nothing, so
// here the error is seen by perf's caller only.
@create@
typedef u32, u64, bool;
identifier pmc, event, attr, pebs;
expression whether_pebs;
expression list log;
@@
 void pmc_reprogram_counter(struct kvm_pmc *pmc, ...)
 {
 	...
	struct perf_event *event;
+	struct perf_event *leader;
 	...
 	bool pebs = whether_pebs;
+	unsigned int i;
 	...
-	event = perf_event_create_kernel_counter(&attr, -1, current, NULL, kvm_perf_overflow, pmc);
-	if (IS_ERR(event)) {
-		pr_debug_ratelimited(log);
-		return;
-	}
-
-	pmc->perf_event = event;
-	pmc_to_pmu(pmc)->event_count++;
+	attr.disabled = pmc->max_nr_events > 1;
+
+	for (i = 0; i < pmc->max_nr_events; i++) {
+		leader = i ? pmc->perf_event : NULL;
+		event = perf_event_create_kernel_counter(&attr, -1, current, leader, kvm_perf_overflow, pmc);
+		if (IS_ERR(event)) {
+			pr_debug_ratelimited(log);
+			return;
+		}
+
+		pmc->perf_events[i] = event;
+		pmc_to_pmu(pmc)->event_count++;
+	}
+
 	clear_bit(...);
 	pmc->is_paused = false;
 	pmc->intr = ...;
+
+	if (pmc->max_nr_events == 1)
+		return;
+
+	for (i = 0; i < pmc->max_nr_events; i++)
+		perf_event_enable(pmc->perf_events[i]);
 }

// A group is stopped where a single event is paused: its value goes into the counter and its events go. So there
// is no group to resume either, pmc_resume_counter() finds no event and the group is made anew.
@pause@
identifier pmc;
@@
 void pmc_pause_counter(struct kvm_pmc *pmc)
 {
 	...
+	/* perf_event_pause() knows one event and would leave the members running. */
+	if (pmc->max_nr_events > 1)
+		pmc_stop_counter(pmc);
+
 	if (!pmc->perf_event || pmc->is_paused)
 		return;
 	...
 }

// "The grouped events are also released as a group": in the order of their creation, and then the counter is one
// of a single event again until the guest's next access. Whether or not there was anything to release.
@release@
identifier pmc;
@@
 void pmc_release_perf_event(struct kvm_pmc *pmc)
 {
-	if (pmc->perf_event) {
-		perf_event_release_kernel(pmc->perf_event);
-		pmc->perf_event = NULL;
-		pmc->current_config = 0;
-		pmc_to_pmu(pmc)->event_count--;
-	}
+	unsigned int i;
+
+	for (i = 0; i < pmc->max_nr_events; i++) {
+		if (!pmc->perf_events[i])
+			continue;
+
+		perf_event_release_kernel(pmc->perf_events[i]);
+		pmc->perf_events[i] = NULL;
+		pmc_to_pmu(pmc)->event_count--;
+	}
+
+	pmc->current_config = 0;
+	pmc->max_nr_events = 1;
 }
