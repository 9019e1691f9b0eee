// struct kvm_pmc holds up to KVM_PMC_MAX_NR_EVENTS events and says how many it means to have.
//
// "use a 1-to-N mapping relationship, i.e., a pmc can be associated with multiple perf_events": an array beside
// the one pointer, which stays its first element's other name. Unlike the seed's flexible array this one has a
// size: kvm_pmc stands in arrays, and events 1..N-1 would lie on the next counter's type and idx.

@layout@
typedef u8, u64, bool;
@@
+#define KVM_PMC_MAX_NR_EVENTS	4
+
 struct kvm_pmc {
 	...
 	u8 idx;
+	u8 max_nr_events;
 	...
-	struct perf_event *perf_event;
 	...
 	bool intr;
+	union {
+		struct perf_event *perf_event;
+		struct perf_event *perf_events[KVM_PMC_MAX_NR_EVENTS];
+	};
 };

// A counter is one event until the hardware definition says otherwise: the gp counters of AMD and Intel, and
// Intel's fixed counters.
@gp@
expression pmu, i;
@@
 pmu->gp_counters[i].current_config = 0;
+pmu->gp_counters[i].max_nr_events = 1;

@fixed@
expression pmu, i;
@@
 pmu->fixed_counters[i].current_config = 0;
+pmu->fixed_counters[i].max_nr_events = 1;
