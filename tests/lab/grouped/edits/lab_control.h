/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef LAB_CONTROL_H
#define LAB_CONTROL_H

/*
 * What the lab tells KVM about counters of several events. The module parameters are described in lab_control.c,
 * the calls stand where lab_control.cocci puts them.
 */

#include <linux/kvm_host.h>
#include <linux/perf_event.h>

/* Programming a counter, in this order. */
void lab_access(struct kvm_pmc *pmc);
void lab_define(struct kvm_pmc *pmc);
void lab_member(struct kvm_pmc *pmc, unsigned int i, struct perf_event_attr *attr, struct perf_event **leader);
void lab_enable(struct kvm_pmc *pmc, unsigned int i);

/* The place in pmc->perf_events[] that is released i-th. */
unsigned int lab_release_nth(struct kvm_pmc *pmc, unsigned int i);

/* The members' counts. */
void lab_keep_members(struct kvm_pmc *pmc);
u64 lab_guest_read(struct kvm_pmc *pmc);
void lab_guest_write(struct kvm_pmc *pmc, u64 value);
void lab_reset(struct kvm_pmu *pmu);

#endif
