// Where the lab's controls (lab_control.c) take hold. None of this is part of the design.

@state@
typedef bool, u64;
@@
 struct kvm_pmc {
 	...
 	bool intr;
+	bool lab_defined;
+	u64 lab_counts[KVM_PMC_MAX_NR_EVENTS];
 	...
 };

// A creation that is to fail must still be a call that probes see fail. The errno travels in a field of
// perf_event_attr that perf_event_open() refuses to take and that no other code sets.
@fail@
identifier attr;
@@
 struct perf_event *perf_event_create_kernel_counter(struct perf_event_attr *attr, ...)
 {
 	...
 	if (attr->aux_output)
 		return ERR_PTR(-EINVAL);
+	if (attr->__reserved_2)
+		return ERR_PTR(-attr->__reserved_2);
 	...
 }

@declared@
@@
 #include <linux/nospec.h>
+#include "lab_control.h"

@access@
identifier pmc;
@@
 void reprogram_counter(struct kvm_pmc *pmc)
 {
 	...
+	lab_access(pmc);
 	pmc_pause_counter(pmc);
 	...
+	lab_define(pmc);
 	pmc_reprogram_counter(...);
 }

@member@
identifier pmc, attr, event, leader;
@@
 void pmc_reprogram_counter(struct kvm_pmc *pmc, ...)
 {
 	<+...
+	lab_member(pmc, i, &attr, &leader);
 	event = perf_event_create_kernel_counter(&attr, -1, current, leader, kvm_perf_overflow, pmc);
 	...+>
 }

@enable@
identifier pmc, i;
@@
 void pmc_reprogram_counter(struct kvm_pmc *pmc, ...)
 {
 	<+...
-	perf_event_enable(pmc->perf_events[i]);
+	lab_enable(pmc, i);
 	...+>
 }

@release@
identifier pmc, i;
@@
 void pmc_release_perf_event(struct kvm_pmc *pmc)
 {
 	...
 	for (i = 0; i < pmc->max_nr_events; i++) {
+		unsigned int nth = lab_release_nth(pmc, i);
+
-		if (!pmc->perf_events[i])
+		if (!pmc->perf_events[nth])
 			continue;
-		perf_event_release_kernel(pmc->perf_events[i]);
-		pmc->perf_events[i] = NULL;
+		perf_event_release_kernel(pmc->perf_events[nth]);
+		pmc->perf_events[nth] = NULL;
 		...
 	}
 	...
 }

@keep@
identifier pmc;
@@
 void pmc_stop_counter(struct kvm_pmc *pmc)
 {
 	<+...
+	lab_keep_members(pmc);
 	pmc->counter = pmc_read_counter(pmc);
 	...+>
 }

// What the guest reads is spliced, what KVM reads for itself is not.
@rdmsr_amd@
expression pmc;
@@
 int amd_pmu_get_msr(...)
 {
 	<+...
-	pmc_read_counter(pmc)
+	lab_guest_read(pmc)
 	...+>
 }

// The mask is the counter's width, which pmc_read_counter() has applied; fields may need more.
@rdmsr_intel@
expression pmc, mask;
identifier val;
typedef u64;
@@
 int intel_pmu_get_msr(...)
 {
 	<+...
-	u64 val = pmc_read_counter(pmc);
-	msr_info->data = val & mask;
+	msr_info->data = lab_guest_read(pmc);
 	...+>
 }

@rdpmc@
expression pmc;
@@
 int kvm_pmu_rdpmc(...)
 {
 	<+...
-	pmc_read_counter(pmc)
+	lab_guest_read(pmc)
 	...+>
 }

@wrmsr@
identifier pmc, val;
typedef u64;
@@
 void pmc_write_counter(struct kvm_pmc *pmc, u64 val)
 {
+	lab_guest_write(pmc, val);
 	...
 }

@reset@
identifier pmu;
@@
 void kvm_pmu_reset(...)
 {
 	...
 	irq_work_sync(&pmu->irq_work);
 	...
+	lab_reset(pmu);
 }
