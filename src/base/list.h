/* SPDX-License-Identifier: Apache-2.0 */
/*
 * list.h - a circular doubly linked list through links embedded in its members.
 *
 * One thread owns a list. A link that is in no list points to itself, so leaving twice is harmless.
 */
#ifndef SSV_LIST_H
#define SSV_LIST_H

#include "base/base.h"

struct link {
	struct link *next, *previous;
};

/* The structure that holds a link as `member`. */
#define link_holder(link, type, member) ((type *)(void *)((uint8_t *)(link)-offsetof(type, member)))

static inline void list_init(struct link *list)
{
	list->next = list;
	list->previous = list;
}

static inline int list_is_empty(const struct link *list)
{
	return list->next == list;
}

static inline void list_push_back(struct link *list, struct link *link)
{
	link->next = list;
	link->previous = list->previous;
	list->previous->next = link;
	list->previous = link;
}

static inline void list_push_front(struct link *list, struct link *link)
{
	list_push_back(list->next, link);
}

static inline void list_remove(struct link *link)
{
	link->previous->next = link->next;
	link->next->previous = link->previous;
	list_init(link);
}

#endif
